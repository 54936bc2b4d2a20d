"""Makes the PEFT adapters under tests/golden/peft with the real `peft`, from tiny random models.

Run with peft 0.21 and transformers 5.23:  python tests/golden/make_peft.py
Each folder holds what `save_pretrained` wrote, and `expected.json`: for each adapted module its rank, sizes and scale, and
the L2 norm of scale * B * A, as `peft` itself computes them.
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

HERE = Path(__file__).parent / "peft"


def llama():
    config = LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    return LlamaForCausalLM(config)


def t5():
    config = T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return T5ForConditionalGeneration(config)


CASES = {
    "llama-all-linear": (llama, dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")),
    "llama-patterns": (llama, dict(task_type="CAUSAL_LM", r=4, lora_alpha=8, use_rslora=True, lora_dropout=0.1,
                                   target_modules=["q_proj", "v_proj", "up_proj"], rank_pattern={"v_proj": 2},
                                   alpha_pattern={r"layers\.1\.mlp\.up_proj": 32})),
    "llama-one-layer": (llama, dict(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "o_proj"],
                                    layers_to_transform=[1], exclude_modules=["o_proj"])),
    "t5-attention": (t5, dict(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=16, target_modules=["q", "v"])),
    "t5-regex": (t5, dict(task_type="SEQ_2_SEQ_LM", r=2, lora_alpha=2,
                          target_modules=r".*decoder.*(EncDecAttention\.[qkvo]|DenseReluDense\.w[io]_?[01]?)")),
    # What must be refused, and is real.
    "refused-dora": (llama, dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True)),
    "refused-modules-to-save": (llama, dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"],
                                            modules_to_save=["lm_head"])),
    "refused-bias": (llama, dict(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], bias="lora_only",
                                 lora_bias=True)),
}


def expected(model):
    modules = {}
    for name, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        modules[name] = dict(rank=a.shape[0], in_features=a.shape[1], out_features=b.shape[0],
                             scale=module.scaling["default"],
                             delta_norm=torch.linalg.norm(module.get_delta_weight("default").double()).item())
    return modules


def main():
    for number, (name, (base, options)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        model = get_peft_model(base(), LoraConfig(**options))
        for parameter_name, parameter in model.named_parameters():
            # B starts at zero; an adapter that has been trained has none.
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        with open(folder / "expected.json", "w") as file:
            json.dump(expected(model), file, indent=1, sort_keys=True)
            file.write("\n")


if __name__ == "__main__":
    main()
