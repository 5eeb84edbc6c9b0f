"""What `python -m segment.batch` is made of: images, the stack, jobs, their cost, and a doctor."""
