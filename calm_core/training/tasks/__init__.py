"""What is trained: a task gives the loop its model, its loss and its metrics."""
