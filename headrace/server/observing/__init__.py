"""What the server remembers and tells of its requests: journal, latencies, traces, log lines, metrics in others' names."""
