"""`python -m benchmarks.peers FOLDER`: train what FOLDER/job.json describes. The clock is this process's."""

import sys

import torch

from benchmarks.peers.contestant import Job, contestant


def main(folder: str) -> None:
    job = Job.read(folder)
    torch.set_num_threads(job.threads)
    contestant(job.kind).train(job)


if __name__ == "__main__":
    main(sys.argv[1])
