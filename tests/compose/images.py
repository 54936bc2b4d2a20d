"""Stand-ins for the images that docker-compose.yml takes from a registry, made on a machine that reaches none.

Debian comes from its own mirror through debootstrap; Redis is Debian's; the object store is moto's S3 server from PyPI,
which keeps its objects in memory but honours conditional writes; Rust is a copy of the toolchain on this machine. Each
is tagged with a digest of what it is made of, so it is made once and made again when that changes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
# The Python of that Debian release: the wheels for the object store must fit it, not this machine's Python.
SUITE_PYTHON = "3.11"
PULL_LIMIT_S = 900


class Skip(Exception):
    """This machine cannot run the test; the message says what it lacks."""


def say(text: str) -> None:
    print(f"compose: {text}", flush=True)


def exists(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0


def available(image: str) -> bool:
    """Whether the image is here or a registry gives it."""
    if exists(image):
        return True
    try:
        pulled = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, timeout=PULL_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False
    if pulled.returncode != 0:
        say(f"no registry gives {image}: {(pulled.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return pulled.returncode == 0


def debian() -> str:
    """A Debian without documentation, much like debian:bookworm-slim."""
    tag = f"tailor-local/debian:{SUITE}"
    if exists(tag):
        return tag
    if os.geteuid() != 0:
        raise Skip("no registry is reachable, and debootstrap must run as root to make a base image")
    if shutil.which("debootstrap") is None:
        say("installing debootstrap")
        run(["apt-get", "install", "--yes", "--quiet", "debootstrap"], stdout=subprocess.DEVNULL)
    say(f"making {tag} with debootstrap from {MIRROR} (about a minute)")
    with tempfile.TemporaryDirectory(prefix="tailor-debootstrap-") as folder:
        root = Path(folder, "root")
        with Path(folder, "log").open("w+") as log:
            if subprocess.run(["debootstrap", "--variant=minbase", SUITE, root, MIRROR], stdout=log, stderr=log).returncode:
                log.seek(0)
                raise SystemExit("compose: debootstrap failed:\n" + "".join(log.readlines()[-15:]))
        leave_out = ["var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*",
                     "usr/share/doc/*", "usr/share/man/*", "usr/share/locale/*"]
        excludes = [f"--exclude=./{pattern}" for pattern in leave_out]
        import_tar(["tar", "-C", root, "--create", *excludes, "."], tag)
    return tag


def redis() -> str:
    return build("redis", {"BASE": debian()}, context=lambda folder: None)


def store() -> str:
    requirements = (HERE / "store-requirements.txt").read_text()

    def fetch_wheels(folder: Path) -> None:
        say("fetching moto's S3 server from PyPI")
        run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore",
             "--target", folder / "site", "--only-binary=:all:", "--implementation=cp", "--python-version", SUITE_PYTHON,
             "--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64",
             "--requirement", HERE / "store-requirements.txt"], stderr=subprocess.DEVNULL)

    return build("store", {"BASE": debian()}, context=fetch_wheels, also=requirements)


def rust() -> str:
    """A build machine with this machine's Rust toolchain, for the full build inside containers."""
    sysroot = Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip())
    version = subprocess.check_output(["rustc", "--version"], text=True)

    def copy_toolchain(folder: Path) -> None:
        say(f"copying {version.strip()}")
        shutil.copytree(sysroot, folder / "toolchain", symlinks=True, ignore=shutil.ignore_patterns("doc", "man"))

    return build("rust", {"BASE": debian()}, context=copy_toolchain, also=version)


def build(name: str, args: dict[str, str], context, also: str = "") -> str:
    """Builds NAME.Dockerfile in a fresh folder that `context` fills, unless an image of the same content is here."""
    dockerfile = (HERE / f"{name}.Dockerfile").read_text()
    digest = hashlib.sha256(f"{dockerfile}\n{also}\n{sorted(args.items())}".encode()).hexdigest()[:12]
    tag = f"tailor-local/{name}:{digest}"
    if exists(tag):
        return tag
    with tempfile.TemporaryDirectory(prefix=f"tailor-{name}-") as folder:
        context(Path(folder))
        Path(folder, "Dockerfile").write_text(dockerfile)
        say(f"building {tag}")
        options = [option for key, value in args.items() for option in ("--build-arg", f"{key}={value}")]
        run(["docker", "build", "--quiet", "--tag", tag, *options, folder], stdout=subprocess.DEVNULL)
    return tag


def import_tar(archive: list, tag: str) -> None:
    """Makes an image of one layer out of the tar archive that a command writes."""
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as tar:
        run(["docker", "import", "-", tag], stdin=tar.stdout, stdout=subprocess.DEVNULL)
    if tar.returncode != 0:
        raise SystemExit(f"compose: tar failed for {tag}")


def run(command: list, **options) -> None:
    done = subprocess.run([str(part) for part in command], **options)
    if done.returncode != 0:
        raise SystemExit(f"compose: command failed with {done.returncode}: {' '.join(map(str, command))}")
