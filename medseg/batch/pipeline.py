"""Reading, computing and writing of different cases at the same time, in one process.

While the network has one case, the next is read and prepared and the one before is postprocessed
and written, each in a thread of its own; the network stays in the calling thread, where Ctrl-C
arrives. At most `AHEAD` + 1 + `BEHIND` cases are in memory, and entries come in the order of the
cases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from medseg.batch.job import Engine, Entry, Stopped, Task, Watch, Worker
from medseg.volumes.dataset import Case

AHEAD = 1  # cases read before the network has time for them
BEHIND = 1  # cases still to be written while the network has the next


def pipelined(worker: Worker, watch: Watch) -> Engine:
    """Make the engine that predicts here.

    Args:
        worker: The model.
        watch: Told of what is waited for.
    """

    def engine(cases: Sequence[Case]) -> Generator[Entry]:
        todo = iter(cases)
        reading: deque[Future[Task]] = deque()
        writing: deque[tuple[Case, Future[Entry]]] = deque()
        reader = ThreadPoolExecutor(1, "medseg-read")
        writer = ThreadPoolExecutor(1, "medseg-write")
        try:
            reading.extend(reader.submit(worker.read, case) for case in islice(todo, AHEAD))
            for case in cases:
                watch("reading", case.id)
                task = reading.popleft().result()
                reading.extend(reader.submit(worker.read, next_) for next_ in islice(todo, 1))
                watch("predicting", case.id)
                writing.append((case, writer.submit(worker.write, worker.compute(task))))
                del task
                while writing and (len(writing) > BEHIND or writing[0][1].done()):
                    yield _written(writing, watch)
            while writing:
                yield _written(writing, watch)
        except (KeyboardInterrupt, Stopped):  # what was computed by now is written, and told
            while writing:
                yield _written(writing, watch)
            raise
        finally:
            reader.shutdown(cancel_futures=True)
            writer.shutdown()

    return engine


def _written(writing: deque[tuple[Case, Future[Entry]]], watch: Watch) -> Entry:
    case, entry = writing.popleft()
    watch("writing", case.id)
    return entry.result()
