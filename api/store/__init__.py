"""What is kept: scenes under an id, and their descriptions as STAC Items."""
