"""DeltaFlow without any labels: nearest-neighbour, smoothness and cycle terms."""

_base_ = ["delta_flow_world.py"]

model = dict(loss="self_supervised", cycle_weight=0.5)
