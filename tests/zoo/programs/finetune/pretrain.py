"""Pretrain the network on the source task and write pretrained.pt."""

import torch
import torch.nn.functional as F
from data import make_task
from model import Net
from torch.utils.data import DataLoader


def pretrain(path):
    loader = DataLoader(make_task(num_classes=8, n=700, seed=1), batch_size=64, shuffle=True)
    model = Net(num_classes=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(6):
        model.train()
        total, seen = 0.0, 0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
            seen += len(labels)
        print(f"pretraining epoch {epoch}: loss {total / seen:.4f}")
    torch.save(model.state_dict(), path)
