"""What a server keeps on disk between its starts: files, batches and fine-tuning jobs."""
