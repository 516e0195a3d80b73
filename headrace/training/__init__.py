"""Low-rank fine-tuning in small units of work: data files, the plan of a job, gradients without autograd, checkpoints."""
