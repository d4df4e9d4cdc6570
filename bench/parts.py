"""What the measuring tools share: programs, the base, running a part within a limit, and the GPU's name."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = pathlib.Path(os.environ.get("TOGI_BENCH", "/dev/shm/togi-bench"))
TOKENIZER = "unigram-32k-bytefallback.model"


def say(text: str) -> None:
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def build(*words: str) -> dict[str, str]:
    """Runs cargo; returns the programs that it built, by their targets' names."""
    command = ["cargo", "build", "--message-format", "json-render-diagnostics", *words]
    told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    built = (json.loads(line) for line in told.splitlines())
    return {line["target"]["name"]: line["executable"] for line in built if line.get("executable")}


def base(togi: str) -> str:
    folder = FOLDER / "base"
    if not (folder / "done").exists():
        say("making a base of rinna-3.6b's shape")
        subprocess.run([togi, "make-base", "--shape", "rinna-3.6b", "--dtype", "bf16", "--out", folder], check=True,
                       stdout=subprocess.DEVNULL)
        (folder / "done").touch()
    return str(folder)


def run(name: str, command: list[str], limit: float) -> dict:
    """Every line of figures that a program tells, and why there are none or no more."""
    began, why = time.time(), None
    log = FOLDER / f"{name.replace(':', '-')}.log"
    with log.open("w") as errors:
        # A new session, so that a timeout also ends the program's children.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                                   env={**os.environ, "RUST_BACKTRACE": "0"})
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            why = f"gave no more within {limit:.0f} s"
    last = log.read_text(errors="replace").splitlines()[-12:]
    sys.stderr.write("".join(f"  {line[:400]}\n" for line in last))
    if process.returncode and not why:
        why = f"ended with {process.returncode}: {' '.join(last[-2:])[-400:]}"
    figures = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {"seconds": time.time() - began, "why": why, "figures": figures}


def card() -> dict:
    if not shutil.which("nvidia-smi"):
        raise SystemExit("this needs an NVIDIA GPU: there is no nvidia-smi")
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,uuid,memory.total", "--format=csv,noheader"],
                           capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=True).stdout
    cuda = told.split("CUDA Version:")[1].split()[0] if "CUDA Version:" in told else "?"
    return dict(zip(("card", "driver", "uuid", "memory"), asked), cuda=cuda)
