#!/usr/bin/env python3
"""Walks Tailor's loop with stock grpcio: every message and method comes from the servers' reflection.

    reflection_client.py ROWS.csv BASE DATASET TRAINER REGISTRY GATEWAY      (the last four are host:port)
"""

import sys
from pathlib import Path

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE_S = 60
CHUNK = 64 << 10


class Server:
    """One address, and what it says about itself."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def services(self) -> list[str]:
        return sorted(self.database.get_services())

    def message(self, name: str, **fields):
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))(**fields)

    def method(self, service: str, method: str):
        """The callable of a method; its kind (unary or stream) is read from the descriptor."""
        described = self.pool.FindServiceByName(service).FindMethodByName(method)
        kind = {(False, False): self.channel.unary_unary, (False, True): self.channel.unary_stream,
                (True, False): self.channel.stream_unary, (True, True): self.channel.stream_stream}
        return kind[described.client_streaming, described.server_streaming](
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(described.output_type).FromString,
        )

    def call(self, service: str, method: str, request):
        return self.method(service, method)(request, timeout=DEADLINE_S)

    def request(self, service: str, method: str, **fields):
        described = self.pool.FindServiceByName(service).FindMethodByName(method)
        return message_factory.GetMessageClass(described.input_type)(**fields)

    def ask(self, service: str, method: str, **fields):
        return self.call(service, method, self.request(service, method, **fields))


def main() -> None:
    rows, base, *addresses = sys.argv[1:]
    dataset, trainer, registry, gateway = (Server(address) for address in addresses)
    served = {
        "tailor.dataset.v1.DatasetService": dataset,
        "tailor.training.v1.TrainingService": trainer,
        "tailor.registry.v1.AdapterRegistry": registry,
        "tailor.inference.v1.InferenceService": gateway,
        "tailor.inference.v1.AdapterAdmin": gateway,
    }
    for service, server in served.items():
        check(service in server.services(), f"{service} is not among {server.services()}")
        health = server.ask("grpc.health.v1.Health", "Check")
        check(health.status == 1, f"{service} says {health}")
        print(f"{service} serves")

    bases = registry.ask("tailor.registry.v1.AdapterRegistry", "ListBases").bases
    check([found.name for found in bases] == [base], f"bases are {bases}")
    print(f"base {bases[0].name}: {bases[0].family}, {bases[0].quant}")

    uploaded = upload(dataset, Path(rows))
    check(uploaded.created and uploaded.dataset.version == 1, f"uploaded {uploaded}")
    print(f"dataset {uploaded.dataset.name}: {uploaded.dataset.rows_train} rows to train on")

    service = "tailor.training.v1.TrainingService"
    training = {"max_steps": 5, "epochs": 1000.0, "batch_rows": 8, "micro_batch_rows": 8}
    evaluation = {"max_new_tokens": 8, "max_validation_rows": 4}
    job = trainer.ask(service, "CreateJob", base=base, dataset="reflected", adapter="reflected",
                      lora={"rank": 4}, training=training, evaluation=evaluation)
    watch = trainer.method(service, "WatchJob")
    events = list(watch(trainer.request(service, "WatchJob", id=job.id), timeout=DEADLINE_S))
    check([event.sequence for event in events] == list(range(1, len(events) + 1)), "the log has a gap")
    check(events[-1].state == "SUCCEEDED", f"the job ended with {events[-1]}")
    steps = [step for event in events for step in event.steps]
    check([step.step for step in steps] == [1, 2, 3, 4, 5], f"steps are {steps}")
    print(f"job {job.id}: {len(events)} events, loss {steps[0].loss:.3f} to {steps[-1].loss:.3f}")

    service = "tailor.registry.v1.AdapterRegistry"
    registry.ask(service, "SetAlias", adapter="reflected", alias="production", version=1, expected_version=0)
    version = registry.ask(service, "Resolve", reference="reflected@production")
    answer = gateway.ask("tailor.inference.v1.InferenceService", "Generate", adapter="reflected@production",
                         input="anna sees a boat", max_new_tokens=8)
    check(answer.adapter_digest == version.digest, f"{answer} is not by {version}")
    print(f"answer {answer.text!r} by {answer.adapter_digest[:19]}…")

    refuse_unknown(gateway)
    print("\nwalked the loop")


def upload(server: Server, path: Path):
    service = "tailor.dataset.v1.DatasetService"

    def parts():
        header = {"name": "reflected", "file_name": path.name, "input_column": "text", "target_column": "expected text"}
        yield server.request(service, "UploadDataset", header=header)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield server.request(service, "UploadDataset", chunk=chunk)

    return server.method(service, "UploadDataset")(parts(), timeout=DEADLINE_S)


def refuse_unknown(server: Server) -> None:
    """An error arrives as a code and a sentence, in any language."""
    try:
        server.ask("tailor.inference.v1.InferenceService", "Generate", adapter="nobody", input="x")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.NOT_FOUND, f"refused with {error.code()}")
        check("nobody" in error.details(), f"refused with {error.details()!r}")
        print(f"refused: {error.details()}")
    else:
        check(False, "an unknown adapter answered")


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise SystemExit(f"reflection_client: {problem}")


if __name__ == "__main__":
    main()
