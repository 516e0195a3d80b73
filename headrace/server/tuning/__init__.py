"""Fine-tuning jobs: data checked by line, a queue that outlives the server, and finished adapters as models."""
