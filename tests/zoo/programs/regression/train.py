"""Predict the strength of a mixture from six ingredients."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)


def make_table(n=900):
    """Ingredients, (n, 6), in [0, 1], and strength, (n, 1), in MPa, with noise."""
    x = torch.rand(n, 6)
    y = 20 + 30 * x[:, 0] - 15 * x[:, 1] ** 2 + 10 * torch.sin(4 * x[:, 2]) + 8 * x[:, 3] * x[:, 4]
    return x, (y + torch.randn(n)).unsqueeze(1)


def main():
    x, y = make_table()
    train_set, val_set, test_set = random_split(TensorDataset(x, y), [630, 130, 140])
    train_x, train_y = x[train_set.indices], y[train_set.indices]
    x_mean, x_std = train_x.mean(dim=0), train_x.std(dim=0)
    y_mean, y_std = train_y.mean(), train_y.std()

    train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=64)
    test_loader = DataLoader(test_set, batch_size=64)

    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    loss_fn = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=1e-5)

    def batches(loader):
        for inputs, targets in loader:
            yield (inputs - x_mean) / x_std, (targets - y_mean) / y_std

    def evaluate(loader):
        """Mean squared error of the standardised target, and mean absolute error in MPa."""
        model.eval()
        squared, absolute, count = 0.0, 0.0, 0
        with torch.no_grad():
            for inputs, targets in batches(loader):
                outputs = model(inputs)
                squared += loss_fn(outputs, targets).item() * len(targets)
                absolute += (outputs - targets).abs().sum().item() * y_std.item()
                count += len(targets)
        return squared / count, absolute / count

    best = float("inf")
    for epoch in range(30):
        model.train()
        total, count = 0.0, 0
        for inputs, targets in batches(train_loader):
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(targets)
            count += len(targets)
        scheduler.step()
        val_loss, val_mae = evaluate(val_loader)
        print(f"epoch {epoch:2d}: train {total / count:.4f}, val {val_loss:.4f}, error {val_mae:.2f} MPa")
        if val_loss < best:
            best = val_loss
            torch.save(model.state_dict(), "regression.pt")

    model.load_state_dict(torch.load("regression.pt"))
    test_loss, test_mae = evaluate(test_loader)
    print(f"test {test_loss:.4f}, error {test_mae:.2f} MPa")


if __name__ == "__main__":
    main()
