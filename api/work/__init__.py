"""What costs time: predictions, the products made of them, and the queue of jobs."""
