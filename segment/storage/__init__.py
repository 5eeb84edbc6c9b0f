"""Where files are: a path on this machine or an object in a bucket, and JSON documents."""
