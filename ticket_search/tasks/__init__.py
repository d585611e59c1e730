"""What a network is trained to do, one file a task: its data, its loss, and the metric that tickets are judged by."""
