"""METEOR 1.5 in its own Java process, which never outlives the `with` block around it.

The jar and its paraphrase table come with `pycocoevalcap`. Starting takes ten seconds or more, because
the jar reads the whole table first, so one process serves any number of score calls.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from pycocoevalcap.meteor import meteor as coco_meteor

from hisem.errors import HisemError

_FOLDER = Path(coco_meteor.__file__).absolute().parent
_JAR = _FOLDER / coco_meteor.METEOR_JAR
_PARAPHRASES = _FOLDER / "data" / "paraphrase-en.gz"
_SEPARATOR = "|||"

_JAVA_OPTIONS = (
    "-Xmx2G",  # as coco-caption; the paraphrase table alone needs about half a gigabyte
    "-XX:+UseSerialGC",  # half the memory of the default collector and no threads on other jobs' cores
    "-Dfile.encoding=UTF-8",
    "-Duser.language=en",  # METEOR lower-cases by the locale: Turkish would turn I into a dotless i
    "-Duser.country=US",
)


class MeteorError(HisemError):
    """METEOR cannot be computed: no Java, an incomplete jar, or a process that ended or hung."""


class Meteor:
    """METEOR for English, with the options of coco-caption (`-l en -norm`).

    A context manager: the process starts on entry, without waiting until it is ready, and is killed and
    reaped on exit. One call at a time.
    """

    def __init__(self, timeout: float = 300.0) -> None:
        """`timeout` bounds one score call, in seconds (> 0); the first includes the process's start."""
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None

    def __enter__(self) -> Meteor:
        """Start Java. Raises `MeteorError` where Java or the jar's files are missing."""
        java = shutil.which("java")
        if java is None:
            raise MeteorError("no `java` on PATH (install a Java runtime, e.g. default-jre-headless)")
        for file in (_JAR, _PARAPHRASES):
            if not file.is_file():
                raise MeteorError(f"pycocoevalcap lacks {file.name} (reinstall pycocoevalcap)")
        # A file, unlike a pipe, needs no reader: a chatty Java can never block on it.
        self._stderr = tempfile.TemporaryFile()
        command = [java, *_JAVA_OPTIONS, "-jar", str(_JAR), "-", "-", "-stdio", "-l", "en", "-norm"]
        try:
            self._process = subprocess.Popen(
                command, cwd=_FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self.close()
            raise MeteorError(f"`java` cannot be started ({error})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it; nothing happens where there is none."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()  # closes both pipes and reaps
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """Corpus METEOR in [0, 1] of one candidate a tile against all its references.

        Line breaks and the jar's field separator `|||` inside a sentence count as spaces.

        Raises `MeteorError` when Java ends, hangs beyond the timeout or answers no number.
        """
        process = self._process
        if process is None:
            raise RuntimeError("Meteor is used outside its `with` block")
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()  # ends the read that the caller is blocked in

        watchdog = threading.Timer(self.timeout, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            return self._exchange(process, candidates, references)
        except (OSError, ValueError, EOFError) as error:
            if expired.is_set():
                reason = f"Java gave no answer within {self.timeout:g} s"
            else:
                reason = f"Java failed: {error or 'broken pipe'}{self._last_words()}"
            self.close()
            raise MeteorError(reason) from error
        finally:
            watchdog.cancel()

    def _exchange(
        self, process: subprocess.Popen[bytes], candidates: Sequence[str], references: Sequence[Sequence[str]]
    ) -> float:
        """The jar's dialogue: statistics for each tile, then the scores of all of them together."""
        statistics = []
        for candidate, sentences in zip(candidates, references, strict=True):
            self._send(process, _SEPARATOR.join(["SCORE ", *map(_field, sentences), _field(candidate)]))
            statistics.append(self._receive(process))
        self._send(process, f" {_SEPARATOR} ".join(["EVAL", *statistics]))
        answers = [float(self._receive(process)) for _ in range(len(statistics) + 1)]
        return answers[-1]  # one score a tile comes first; the last aggregates their statistics

    def _send(self, process: subprocess.Popen[bytes], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n".encode(errors="replace"))
        process.stdin.flush()

    def _receive(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise EOFError("it ended early")
        return line.decode(errors="replace").strip()

    def _last_words(self) -> str:
        """The end of what Java wrote to its standard error, for the message."""
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        text = " ".join(self._stderr.read().decode(errors="replace").split())
        return f" ({text[-300:]})" if text else ""


def _field(sentence: str) -> str:
    """A sentence as one field of the jar's line."""
    return f" {' '.join(sentence.replace(_SEPARATOR, ' ').split())} "
