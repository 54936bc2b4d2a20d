"""llama.cpp in a process of its own, on a random model in Q4_0 of the shape that bench_serve has.

Writes the model (blocks of 32 weights with one scale: the speed does not depend on the values), then answers each line of
its input, "decode SEQUENCES STEPS" or "prefill TOKENS", with the seconds that llama_decode took. The first line it prints
says that it is ready.

    python tests/bench/serve_peer.py MODEL.gguf HIDDEN,LAYERS,FEED_FORWARD,VOCAB,HEADS,KV_HEADS THREADS
"""

import ctypes
import struct
import sys
import time

import llama_cpp as lc
import numpy as np

F32, Q4_0 = 0, 2  # types of tensors
U32, TEXT, FLOAT32 = 4, 8, 6  # types of metadata


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_model(path, hidden, layers, feed_forward, vocab, heads, kv_heads):
    """A GGUF file, version 3: metadata, tensors' names and places, then their bytes, each at a multiple of 32."""
    kv_width = hidden // heads * kv_heads
    tensors = [("token_embd.weight", vocab, hidden), ("output_norm.weight", 0, hidden), ("output.weight", vocab, hidden)]
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [(at + "attn_norm.weight", 0, hidden), (at + "ffn_norm.weight", 0, hidden)]
        tensors += [(at + "attn_q.weight", hidden, hidden), (at + "attn_output.weight", hidden, hidden)]
        tensors += [(at + "attn_k.weight", kv_width, hidden), (at + "attn_v.weight", kv_width, hidden)]
        tensors += [(at + "ffn_gate.weight", feed_forward, hidden), (at + "ffn_up.weight", feed_forward, hidden)]
        tensors += [(at + "ffn_down.weight", hidden, feed_forward)]
    settings = [
        ("general.architecture", TEXT, text("llama")),
        ("tokenizer.ggml.model", TEXT, text("no_vocab")),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
    ]
    for name, value in [
        ("context_length", 2048),
        ("embedding_length", hidden),
        ("block_count", layers),
        ("feed_forward_length", feed_forward),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("rope.dimension_count", hidden // heads),
        ("vocab_size", vocab),
    ]:
        settings.append((f"llama.{name}", U32, struct.pack("<I", value)))
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    header += b"".join(text(name) + struct.pack("<I", kind) + value for name, kind, value in settings)
    offset = 0
    for name, out, width in tensors:
        sides = (width, out) if out else (width,)  # the row's length first
        header += text(name) + struct.pack("<I", len(sides)) + struct.pack(f"<{len(sides)}Q", *sides)
        header += struct.pack("<IQ", Q4_0 if out else F32, offset)
        offset += out * width // 32 * 18 if out else width * 4
        offset += -offset % 32
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(header + bytes(-len(header) % 32))
        for _, out, width in tensors:
            if out:
                blocks = random.integers(0, 256, (out * width // 32, 18), dtype=np.uint8)
                blocks[:, :2] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)
                raw = blocks.tobytes()
            else:
                raw = np.ones(width, np.float32).tobytes()
            file.write(raw + bytes(-len(raw) % 32))


class Peer:
    def __init__(self, path, vocab, threads):
        self.vocab, self.threads = vocab, threads
        lc.llama_log_set(silent, None)
        lc.llama_backend_init()
        self.model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        assert self.model, "llama.cpp does not load the model"

    def context(self, sequences, room):
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, 512, 512
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max = sequences
        return lc.llama_init_from_model(self.model, params)

    def run(self, context, tokens):
        """`tokens`: of each its id, position and sequence, and whether its logits are wanted."""
        batch = lc.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        start = time.perf_counter()
        assert lc.llama_decode(context, batch) == 0
        seconds = time.perf_counter() - start
        lc.llama_batch_free(batch)
        return seconds

    def decode(self, sequences, steps):
        context = self.context(sequences, 256 * sequences)
        seconds = 0.0
        for at in range(4 + steps):
            step = [((at * 7 + i) % self.vocab, at, i, 1) for i in range(sequences)]
            took = self.run(context, step)
            seconds += took if at >= 4 else 0.0
        lc.llama_free(context)
        return seconds

    def prefill(self, count):
        context = self.context(1, 1024)
        took = self.run(context, [(i % self.vocab, i, 0, int(i == count - 1)) for i in range(count)])
        lc.llama_free(context)
        return took


@lc.llama_log_callback
def silent(level, message, data):
    pass


def main():
    path, shape, threads = sys.argv[1:]
    shape = [int(side) for side in shape.split(",")]
    write_model(path, *shape)
    peer = Peer(path, shape[3], int(threads))
    print("ready", flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        numbers = [int(number) for number in numbers]
        print({"decode": peer.decode, "prefill": peer.prefill}[name](*numbers), flush=True)


if __name__ == "__main__":
    main()
