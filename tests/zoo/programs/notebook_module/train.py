# %% [markdown]
# # Shapes
# Tell six noisy 12x12 patterns apart. Everything lives at module level, as in a notebook.

# %%
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(7)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

EPOCHS = 15
BATCH_SIZE = 48
MAX_LR = 3e-3
NUM_CLASSES = 6

# %% Data: each class has a pattern; a sample is its pattern, shifted and in noise.
generator = torch.Generator().manual_seed(1)
patterns = F.interpolate(torch.randn(NUM_CLASSES, 1, 4, 4, generator=generator), size=12, mode="bilinear")


def make_split(n):
    y = torch.randint(NUM_CLASSES, (n,), generator=generator)
    shifts = torch.randint(-1, 2, (n, 2), generator=generator)
    x = torch.stack([patterns[c].roll(tuple(s), dims=(1, 2)) for c, s in zip(y.tolist(), shifts.tolist(), strict=True)])
    x = 1.5 * x + 2 * torch.randn(x.shape, generator=generator) + 0.5
    return x, y


x_train, y_train = make_split(1000)
x_valid, y_valid = make_split(250)
x_test, y_test = make_split(250)

# Statistics of the training images only, used for every split.
mean, std = x_train.mean(), x_train.std()
x_train = (x_train - mean) / std
x_valid = (x_valid - mean) / std
x_test = (x_test - mean) / std

train_ds = TensorDataset(x_train, y_train)
valid_ds = TensorDataset(x_valid, y_valid)
test_ds = TensorDataset(x_test, y_test)
train_dl = DataLoader(train_ds, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
valid_dl = DataLoader(valid_ds, batch_size=2 * BATCH_SIZE)
test_dl = DataLoader(test_ds, batch_size=2 * BATCH_SIZE)


# %% Model
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm1d(64)
        self.fc1 = nn.Linear(32 * 3 * 3, 64, bias=False)
        self.fc2 = nn.Linear(64, NUM_CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.norm(self.fc1(x.flatten(1))))
        x = F.dropout(x, 0.25, training=self.training)
        return self.fc2(x)


model = Net().to(device)
opt = torch.optim.Adam(model.parameters(), lr=MAX_LR)
sched = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=MAX_LR, total_steps=EPOCHS * len(train_dl))
print(sum(p.numel() for p in model.parameters()), "parameters")


# %% Train
def evaluate(dl):
    model.eval()
    loss, correct, n = 0.0, 0, 0
    with torch.no_grad():
        for xb, yb in dl:
            xb, yb = xb.to(device), yb.to(device)
            out = model(xb)
            loss += F.cross_entropy(out, yb, reduction="sum").item()
            correct += (out.argmax(dim=1) == yb).sum().item()
            n += yb.size(0)
    return loss / n, correct / n


history = []
best_valid, best_weights = float("inf"), None
for epoch in range(EPOCHS):
    model.train()
    running_loss, n = 0.0, 0
    for xb, yb in train_dl:
        xb, yb = xb.to(device), yb.to(device)
        opt.zero_grad()
        out = model(xb)
        loss = F.cross_entropy(out, yb)
        loss.backward()
        opt.step()
        sched.step()
        running_loss += loss.item() * yb.size(0)
        n += yb.size(0)
    valid_loss, valid_acc = evaluate(valid_dl)
    history.append((running_loss / n, valid_loss, valid_acc))
    print(f"{epoch:2d}  train {running_loss / n:.4f}  valid {valid_loss:.4f}  accuracy {valid_acc:.3f}")
    if valid_loss < best_valid:
        best_valid = valid_loss
        best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

# %% Test with the weights of the best epoch
model.load_state_dict(best_weights)
torch.save(model.state_dict(), "model.pt")
test_loss, test_acc = evaluate(test_dl)
print(f"test {test_loss:.4f}  accuracy {test_acc:.3f}")
