#!/usr/bin/env python3
"""Starts docker-compose.yml with real containers, walks the README's job against it, and takes it down again.

    tests/compose/run.py                     programs built on this machine, put into the images of deploy/Dockerfile
    tests/compose/run.py --bin-dir DIR       the same with programs that are already in DIR
    tests/compose/run.py --full              programs built inside the containers too (a long build)
    tests/compose/run.py --images            only what stands in for images of a registry

Where no registry is reachable the base images are made here (images.py). Exit status: 0 passed, 1 failed, 77 skipped
because this machine cannot run it; a skip also prints a line that starts with SKIPPED.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import images
from images import Skip, run, say

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = 77
SERVICES = ["dataset", "trainer", "registry", "gateway"]
PROGRAMS = {"cli": "tailor"} | {service: f"tailor-{service}" for service in SERVICES}
# Above this, something that does not belong there got into an image. The base, Debian, is about 75 MB of each.
SIZE_LIMIT_MB = {"dataset": 200, "registry": 200, "trainer": 750, "gateway": 750}
HEALTHY_WITHIN_S = 180
RUNTIME_MARK = "# ==== runtime images"
# The README says what to type; this is where it says it.
WALK_MARK = "<!-- compose-walk"


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` takes the containers down
    try:
        compose = find_compose()
        with tempfile.TemporaryDirectory(prefix="tailor-compose-") as scratch:
            system = System(compose, Path(scratch), options)
            if options.images:
                system.choose_peers()
                return 0
            return system.test()
    except Skip as reason:
        bar = "=" * 100
        print(f"{bar}\nSKIPPED: the compose test did NOT run: {reason}\n{bar}", flush=True)
        return SKIPPED


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="build the programs inside the containers")
    parser.add_argument("--bin-dir", type=Path, help="take the programs from this folder instead of building them")
    parser.add_argument("--images", action="store_true",
                        help="make what stands in for images that no registry gives, for a later run, and nothing else")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the page whose walk is run")
    parser.add_argument("--keep", action="store_true", help="leave the containers and images for a look around")
    parser.add_argument("--trust-host", action="store_true",
                        help="with --full: let the build trust the certificate authorities that this machine trusts")
    return parser.parse_args()


def find_compose() -> list[str]:
    """The compose command, once it is known that an engine answers."""
    if shutil.which("docker") is None:
        raise Skip("there is no docker command; install Docker Engine")
    engine = subprocess.run(["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True)
    if engine.returncode != 0:
        raise Skip(f"no Docker engine answers: {engine.stderr.strip() or engine.stdout.strip()}")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            say(f"Docker engine {engine.stdout.strip()}, command `{' '.join(command)}`")
            return command
    raise Skip("neither `docker compose` nor `docker-compose` is installed")


class System:
    """One compose project with a name, images and ports of its own, beside whatever else runs on this machine."""

    def __init__(self, compose: list[str], scratch: Path, options: argparse.Namespace) -> None:
        self.scratch = scratch
        self.options = options
        self.name = f"tailor-test-{os.getpid()}"
        self.override = scratch / "override.json"
        files = ["--file", ROOT / "docker-compose.yml", "--file", self.override]
        self.compose = [*compose, "--project-name", self.name, "--project-directory", ROOT, *files]
        self.ports = free_ports(SERVICES)
        self.env = {**os.environ, "TAILOR_TAG": self.name}
        for service, port in self.ports.items():
            self.env[f"{service.upper()}_PORT"] = str(port)
            self.env[f"TAILOR_{service.upper()}_URL"] = f"http://127.0.0.1:{port}"

    def test(self) -> int:
        try:
            started = time.monotonic()
            self.choose_images()
            self.step("images built", "build", *SERVICES, "cli")
            self.check_images()
            self.step("system started", "up", "--detach", "--no-build")
            self.wait_until_healthy()
            self.check_users()
            self.walk()
            self.check_restart()
            self.check_cli_image()
            say(f"PASSED in {time.monotonic() - started:.0f} s")
            return 0
        except BaseException:
            say("FAILED; the last lines of every container follow")
            subprocess.run([*self.compose, "logs", "--no-color", "--tail", "60"], env=self.env)
            raise
        finally:
            if not self.options.keep:
                self.take_down()

    def step(self, what: str, *arguments: str) -> None:
        began = time.monotonic()
        with Path(self.scratch, "log").open("w+") as log:
            done = subprocess.run([*self.compose, *arguments], env=self.env, stdout=log, stderr=subprocess.STDOUT)
            log.seek(0)
            if done.returncode != 0:
                raise SystemExit(f"compose: `{' '.join(arguments)}` failed:\n{''.join(log.readlines()[-60:])}")
        say(f"{what} in {time.monotonic() - began:.0f} s")

    # --- images ---

    def choose_peers(self) -> dict:
        """Registry images where a registry answers, stand-ins where none does. What that overrides in the compose file."""
        override: dict = {}
        self.choose("REDIS_IMAGE", "valkey/valkey:8-bookworm", images.redis)
        if self.choose("STORE_IMAGE", "rustfs/rustfs:1.0.1", images.store):
            probe = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/moto-api/')"
            override["store"] = {"healthcheck": {"test": ["CMD", "python3", "-c", probe]}}
        self.choose("RUNTIME_IMAGE", "debian:bookworm-slim", images.debian)
        if self.options.full:
            self.choose("RUST_IMAGE", "rust:1.95-bookworm", images.rust)
        return override

    def choose_images(self) -> None:
        """Other programs' images, then where ours come from."""
        override = self.choose_peers()
        if self.options.full:
            if self.options.trust_host:
                self.lend_authorities()
        else:
            context = self.prebuilt_context(self.programs())
            for service in PROGRAMS:
                override.setdefault(service, {})["build"] = {"context": str(context), "dockerfile": "Dockerfile"}
        self.override.write_text(json.dumps({"services": override} if override else {}))

    def choose(self, variable: str, default: str, stand_in) -> bool:
        """Sets the variable that names an image. True if it names a stand-in."""
        wanted = self.env.get(variable, default)
        local = not images.available(wanted)
        self.env[variable] = stand_in() if local else wanted
        return local

    def programs(self) -> Path:
        if self.options.bin_dir:
            return self.options.bin_dir
        say("cargo build --release --locked")
        run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT)
        metadata = subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps"], cwd=ROOT)
        return Path(json.loads(metadata)["target_directory"], "release")

    def prebuilt_context(self, programs: Path) -> Path:
        """A build context whose Dockerfile is the runtime half of deploy/Dockerfile over programs built outside."""
        out = self.scratch / "stage" / "out"
        for folder in ("bin", "lib", "certs"):
            (out / folder).mkdir(parents=True)
        for program in PROGRAMS.values():
            run(["strip", "-o", out / "bin" / program, programs / program])
        for library in sorted((ROOT / ".libtorch" / "lib").glob("*.so*")):
            run(["strip", "--strip-unneeded", "-o", out / "lib" / library.name, library])
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", out / "certs")
        shutil.copy(ROOT / "Cargo.lock", out)
        self.artifacts = f"tailor-local/programs:{self.name}"
        images.import_tar(["tar", "-C", out.parent, "--create", "out"], self.artifacts)
        shutil.rmtree(out)

        whole = (ROOT / "deploy" / "Dockerfile").read_text()
        _, mark, runtime_half = whole.partition(RUNTIME_MARK)
        if not mark:
            raise SystemExit(f"compose: deploy/Dockerfile lacks the line that starts with {RUNTIME_MARK!r}")
        context = self.scratch / "context"
        context.mkdir()
        head = f"ARG RUNTIME_IMAGE\nFROM {self.artifacts} AS build\n# "
        Path(context, "Dockerfile").write_text(head + runtime_half)
        return context

    def lend_authorities(self) -> None:
        self.lent = ROOT / "deploy" / "certs" / "this-machine.crt"
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self.lent)

    def image(self, service: str) -> str:
        return f"tailor-{service}:{self.name}"

    def check_images(self) -> None:
        lock = hashlib.sha256((ROOT / "Cargo.lock").read_bytes()).hexdigest()
        for service in PROGRAMS:
            image = self.image(service)
            facts = json.loads(output(["docker", "image", "inspect", image]))[0]
            size_mb = facts["Size"] / 1e6
            user = facts["Config"]["User"]
            say(f"image {service:9} {size_mb:6.0f} MB, user {user}")
            check(user not in ("", "root") and not user.startswith("0"), f"{image} runs as root")
            check(size_mb <= SIZE_LIMIT_MB.get(service, 750), f"{image} is {size_mb:.0f} MB")
            inside = output(["docker", "run", "--rm", "--entrypoint", "sha256sum", image, "/opt/tailor/Cargo.lock"])
            check(inside.split()[0] == lock, f"{image} was not built from this Cargo.lock")

    # --- the running system ---

    def container(self, service: str) -> str:
        return output([*self.compose, "ps", "--quiet", service], env=self.env).strip()

    def wait_until_healthy(self) -> None:
        began = time.monotonic()
        waiting = {service: "" for service in ["redis", "store", *SERVICES]}
        while waiting:
            for service in list(waiting):
                state = json.loads(output(["docker", "inspect", self.container(service)]))[0]["State"]
                waiting[service] = state["Health"]["Status"]
                check(state["Status"] != "exited", f"{service} ended with {state['ExitCode']}")
                if waiting[service] == "healthy":
                    say(f"{service} is healthy after {time.monotonic() - began:.0f} s")
                    del waiting[service]
            check(time.monotonic() - began < HEALTHY_WITHIN_S, f"not healthy after {HEALTHY_WITHIN_S} s: {waiting}")
            time.sleep(0.5)

    def check_users(self) -> None:
        for service in ["redis", "store", *SERVICES]:
            uids = output(["docker", "top", self.container(service), "-eo", "uid,pid"]).split("\n")[1:]
            check(all(line.split()[0] != "0" for line in uids if line), f"a process of {service} runs as root")
        say("no process of any container runs as root")

    def walk(self) -> None:
        """Runs the README's block as it stands, with `tailor` from this build on the PATH."""
        block = walk_block(self.options.readme)
        say(f"the walk of {self.options.readme.name}:")
        script = f"set -euo pipefail\n{block}"
        self.env["PATH"] = f"{self.host_cli()}:{self.env['PATH']}"
        began = time.monotonic()
        done = subprocess.run(["bash", "-x", "-c", script], cwd=ROOT, env=self.env, stderr=subprocess.STDOUT)
        check(done.returncode == 0, f"the walk failed with {done.returncode}")
        say(f"the walk took {time.monotonic() - began:.0f} s")

    def host_cli(self) -> Path:
        """A folder with a `tailor` that runs outside containers: this build's, or the image's own."""
        if not self.options.full:
            return (self.options.bin_dir or self.programs()).resolve()
        inside = output(["docker", "create", self.image("cli")]).strip()
        run(["docker", "cp", f"{inside}:/opt/tailor", self.scratch / "tailor"], stdout=subprocess.DEVNULL)
        run(["docker", "rm", inside], stdout=subprocess.DEVNULL)
        return self.scratch / "tailor" / "bin"

    def check_restart(self) -> None:
        """What the services forget by a restart, and Redis by losing everything, is nothing that matters."""
        ask = ["tailor", "generate", "--json", "--adapter", "grammar@production", "She go to school every day."]
        before = output(ask, env=self.env)
        run([*self.compose, "exec", "-T", "redis", "valkey-cli", "flushall"], env=self.env, stdout=subprocess.DEVNULL)
        self.step("services restarted over an empty Redis", "restart", *SERVICES)
        self.wait_until_healthy()
        after = output(ask, env=self.env)
        # Text, figures and the digests of what gave them.
        check(json.loads(after) == json.loads(before), f"another answer after a restart: {before} then {after}")
        say("the same answer after a restart")

    def check_cli_image(self) -> None:
        """The same command line in its container, which reaches the services by their names."""
        listed = output([*self.compose, "run", "--rm", "-T", "cli", "adapter", "list", "--json"], env=self.env)
        check("grammar" in listed, f"`tailor adapter list` in the cli container does not show grammar: {listed}")
        say("the cli container lists the adapter")

    def take_down(self) -> None:
        subprocess.run([*self.compose, "down", "--volumes", "--remove-orphans", "--timeout", "10"], env=self.env,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        built = [self.image(service) for service in PROGRAMS] + [getattr(self, "artifacts", "")]
        for image in filter(None, built):
            subprocess.run(["docker", "image", "rm", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if lent := getattr(self, "lent", None):
            lent.unlink(missing_ok=True)


def walk_block(readme: Path) -> str:
    """What a reader would type: the commands of the first console block after the mark, without prompts and answers."""
    _, mark, rest = readme.read_text().partition(WALK_MARK)
    found = re.search(r"```console\n(.*?)```", rest, re.DOTALL) if mark else None
    if not found:
        raise SystemExit(f"compose: {readme} has no console block after {WALK_MARK}")
    commands: list[str] = []
    for line in found.group(1).splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
        elif commands and commands[-1].endswith("\\"):
            commands.append(line)
    return "\n".join(commands)


def free_ports(names: list[str]) -> dict[str, int]:
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: held.getsockname()[1] for name, held in sockets.items()}
    for held in sockets.values():
        held.close()
    return ports


def output(command: list, **options) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, **options).stdout


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise SystemExit(f"compose: {problem}")


if __name__ == "__main__":
    sys.exit(main())
