"""A small causal language model of characters, trained for a number of iterations."""

import math
import random

import torch
import torch.nn as nn
import torch.nn.functional as F

BLOCK_SIZE = 24
BATCH_SIZE = 16
MAX_ITERS = 240
EVAL_INTERVAL = 40
LR, MIN_LR, WARMUP_ITERS = 5e-3, 5e-4, 30
DIM, HEADS, LAYERS = 32, 4, 2


def write_text(sentences, seed):
    """Sentences of a tiny grammar."""
    rng = random.Random(seed)
    subjects, verbs = ["the cat", "a dog", "my bird", "the old man"], ["sees", "likes", "follows", "hears"]
    objects = ["a fish", "the moon", "the red car", "my house"]
    return " ".join(f"{rng.choice(subjects)} {rng.choice(verbs)} {rng.choice(objects)}." for _ in range(sentences))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """Token indices, (B, N), to logits, (B, N, vocabulary); the head shares the embedding's weights."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, DIM)
        self.position = nn.Embedding(BLOCK_SIZE, DIM)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, vocabulary, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


def get_batch(data):
    """Random windows of the text and the same windows one character later, each (B, N)."""
    offsets = torch.randint(len(data) - BLOCK_SIZE, (BATCH_SIZE,)).tolist()
    x = torch.stack([data[i : i + BLOCK_SIZE] for i in offsets])
    y = torch.stack([data[i + 1 : i + 1 + BLOCK_SIZE] for i in offsets])
    return x, y


def loss_of(model, x, y):
    logits = model(x)
    return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))


@torch.no_grad()
def held_out_loss(model, data):
    """Mean loss a character over all whole windows of the held-out text."""
    model.eval()
    windows = (len(data) - 1) // BLOCK_SIZE
    x = data[: windows * BLOCK_SIZE].view(windows, BLOCK_SIZE)
    y = data[1 : windows * BLOCK_SIZE + 1].view(windows, BLOCK_SIZE)
    loss = loss_of(model, x, y).item()
    model.train()
    return loss


def lr_at(iteration):
    if iteration < WARMUP_ITERS:
        return LR * (iteration + 1) / WARMUP_ITERS
    progress = (iteration - WARMUP_ITERS) / (MAX_ITERS - WARMUP_ITERS)
    return MIN_LR + 0.5 * (LR - MIN_LR) * (1 + math.cos(math.pi * progress))


def main():
    torch.manual_seed(1337)
    train_text, val_text = write_text(400, seed=1), write_text(40, seed=2)
    index = {character: i for i, character in enumerate(sorted(set(train_text)))}
    train_data = torch.tensor([index[c] for c in train_text])
    val_data = torch.tensor([index[c] for c in val_text])

    model = LanguageModel(len(index))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    best = float("inf")
    for iteration in range(MAX_ITERS):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(iteration)
        loss = loss_of(model, *get_batch(train_data))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        if (iteration + 1) % EVAL_INTERVAL == 0:
            val_loss = held_out_loss(model, val_data)
            print(f"iteration {iteration + 1}: train {loss.item():.4f}, val {val_loss:.4f}")
            if val_loss < best:
                best = val_loss
                torch.save({"model": model.state_dict(), "iteration": iteration, "val_loss": val_loss}, "ckpt.pt")
    print(f"perplexity {math.exp(best):.3f}")


if __name__ == "__main__":
    main()
