"""Tasks, which provide the data, the loss, and the metric that tickets are judged by."""
