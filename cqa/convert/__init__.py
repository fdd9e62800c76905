"""Models in other formats, written as folders in Hugging Face format."""
