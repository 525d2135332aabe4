"""LoRA of Hugging Face PEFT on STS-B with the settings of the README's table, to tell a fault of the setting from one of the program.

Batches of 8 in a random order, AdamW without weight decay, linear schedule after 6 % warm-up, gradients clipped to the norm 1, the mean
squared error of the score from 0 to 5. Prints Pearson's correlation on the development set, times 100.

    python3 scripts/bench/peft_stsb.py MODEL GLUE/STS-B [--steps 400] [--rate 2e-3] [--seed 0] [--threads 1]
"""

import argparse
import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import pearsonr
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup


def rows(path):
    header, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    places = [header.split("\t").index(name) for name in ("sentence1", "sentence2", "score")]
    cells = [[line.split("\t")[place] for place in places] for line in lines]
    return [(first, second, float(score)) for first, second, score in cells]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    train, dev = rows(args.data / "train.tsv"), rows(args.data / "dev.tsv")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    model = get_peft_model(model, lora)

    def scores(batch):
        texts = [row[0] for row in batch], [row[1] for row in batch]
        return model(**tokenizer(*texts, padding=True, truncation=True, max_length=128, return_tensors="pt")).logits[:, 0]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, -(-6 * args.steps // 100), args.steps)
    random.Random(args.seed).shuffle(train)
    model.train()
    for step in range(args.steps):
        start = 8 * step % (len(train) - 8)
        batch = train[start : start + 8]
        loss = ((scores(batch) - torch.tensor([row[2] for row in batch])) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        found = torch.cat([scores(dev[start : start + 32]) for start in range(0, len(dev), 32)])
    print(f"{100 * pearsonr(found.numpy(), [row[2] for row in dev])[0]:.1f}")


if __name__ == "__main__":
    main()
