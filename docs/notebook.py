# %% [markdown]
# # From nothing to one's own headlines
#
# A notebook in percent format: each `# %%` begins a cell. As a program it takes a minute on two cores.

# %%
import faisca

config = faisca.configure("tiny", pretrain={"max_steps": 200, "epochs": 9}, run={"stages": ["pretrain"]})
config.model

# %% [markdown]
# Training is a loop over what it measures. Leave it whenever you have seen enough: the run is saved.

# %%
losses: dict[int, float] = {}
for record in faisca.watch(config, "runs/notebook"):
    if "loss" in record:
        losses[record["step"]] = record["loss"]
    if record["step"] >= 5:
        break
print(f"{len(losses)} steps, loss {min(losses.values()):.2f}")

# %% [markdown]
# And go on, to the end.

# %%
for record in faisca.watch(out="runs/notebook"):
    if "loss" in record:
        losses[record["step"]] = record["loss"]
print(f"loss {losses[1]:.2f} at first, {losses[max(losses)]:.2f} after {max(losses)} steps")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(list(losses), list(losses.values()))
axes.set(xlabel="step", ylabel="loss (nats a token)")
figure.savefig("losses.png")

# %% [markdown]
# What came of it writes headlines, of a sort.

# %%
model = faisca.load("runs/notebook")
model.generate("Presidente", n=3, seed=0)

# %% [markdown]
# From there on: a few steps of reinforcement towards short headlines.

# %%
short = model.grpo("runs/short", grpo={"steps": 3, "reward": ["length:5-20"]})
stage = short.checkpoint.state.stages[-1]
print(f"reward {stage['reward_before']:.2f} before, {stage['reward_after']:.2f} after")
