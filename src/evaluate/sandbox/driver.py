# Runs one program as HF's `code_eval` does: in an empty module, without input or output, any exception a failure.
# Read by the sandbox at build time and handed to the interpreter with `-c`. Standard input holds a token on the first
# line and the program after it; the token comes back on standard output if the program ends without an exception.
import io
import os
import sys


def _run(write=os.write, leave=os._exit):
    token, _, program = sys.stdin.buffer.read().partition(b"\n")

    class Silent(io.StringIO):
        """Takes everything, keeps nothing, has nothing to read."""

        def write(self, text):
            return len(text)

        def read(self, *_):
            raise OSError("a program under test has no input")

        readline = readlines = read

        def readable(self):
            return False

    sys.stdin = sys.stdout = sys.stderr = Silent()
    try:
        exec(compile(program.decode(), "<program>", "exec"), {})
    except BaseException as problem:
        try:
            reason = f"{type(problem).__name__}: {problem}"
        except BaseException:
            reason = type(problem).__name__
        write(2, reason[:400].encode("utf-8", "replace"))
        leave(1)
    write(1, token)
    leave(0)


_run()
