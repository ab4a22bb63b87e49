"""The same kinds of parallelism as torch has them built in: what scratch is measured against."""
