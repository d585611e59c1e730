"""Tasks, which provide the data, the loss, and the metric by which tickets are judged."""
