"""The fields of PEFT's configurations: peft-bench/tests/golden/peft-fields.json.

For each `peft_type` and field: its default, and whether null may stand there (by the annotation, or as the default).
"""

import dataclasses
import json
import typing
from pathlib import Path

import peft

CONFIGS = [
    peft.LoraConfig,
    peft.AdaLoraConfig,
    peft.LoKrConfig,
    peft.IA3Config,
    peft.PromptTuningConfig,
    peft.PrefixTuningConfig,
    peft.PromptEncoderConfig,
    peft.MultitaskPromptTuningConfig,
]


def default(field):
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    return getattr(value, "value", value)


def fields(config):
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        null = type(None) in typing.get_args(hints[field.name]) or default(field) is None
        yield field.name, {"default": default(field), "null": null}


def main():
    table = {"peft": peft.__version__}
    for config in CONFIGS:
        kind = config.__post_init__ and {
            "LoraConfig": "LORA",
            "AdaLoraConfig": "ADALORA",
            "LoKrConfig": "LOKR",
            "IA3Config": "IA3",
            "PromptTuningConfig": "PROMPT_TUNING",
            "PrefixTuningConfig": "PREFIX_TUNING",
            "PromptEncoderConfig": "P_TUNING",
            "MultitaskPromptTuningConfig": "MULTITASK_PROMPT_TUNING",
        }[config.__name__]
        table[kind] = dict(sorted(fields(config)))
    path = Path(__file__).resolve().parents[2] / "peft-bench/tests/golden/peft-fields.json"
    path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
