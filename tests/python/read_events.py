#!/usr/bin/env python3
"""Reads a run as TensorBoard does and prints {tag: [[step, value], …]}.

    read_events.py FOLDER
"""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main() -> None:
    (folder,) = sys.argv[1:]
    run = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    run.Reload()
    print(json.dumps({tag: [[found.step, found.value] for found in run.Scalars(tag)] for tag in run.Tags()["scalars"]}))


if __name__ == "__main__":
    main()
