"""Configurations of the reference implementations, as stored in fixture files, to ours."""


# ---------------------------------------------------------------- 2-D backbones, heads, detectors


def bev_backbone(config: dict) -> dict:
    """BaseBEVBackbone or BaseBEVResBackbone."""
    return {
        "type": "BEVBackbone",
        "layer_nums": config["LAYER_NUMS"],
        "strides": config["LAYER_STRIDES"],
        "channels": config["NUM_FILTERS"],
        "up_strides": config["UPSAMPLE_STRIDES"],
        "up_channels": config["NUM_UPSAMPLE_FILTERS"],
        "residual": config["NAME"] == "BaseBEVResBackbone",
    }


def center_options(config: dict, classes: int) -> dict:
    """What CenterHead and VoxelNeXtHead have in common: groups, branches, losses, decoding."""
    branches = config["SEPARATE_HEAD_CFG"]["HEAD_DICT"]
    weights = config["LOSS_CONFIG"]["LOSS_WEIGHTS"]
    assigner = config["TARGET_ASSIGNER_CONFIG"]
    return {
        "groups": config["CLASS_NAMES_EACH_HEAD"],
        "velocity": "vel" in branches,
        "iou": "iou" in branches,
        "diou": config.get("IOU_REG_LOSS", False),
        "num_convs": {
            **{name: branch["num_conv"] for name, branch in branches.items()},
            "hm": config["NUM_HM_CONV"],
        },
        "bias_before_norm": config.get("USE_BIAS_BEFORE_NORM", False),
        "overlap": assigner["GAUSSIAN_OVERLAP"],
        "min_radius": assigner["MIN_RADIUS"],
        "heatmap_weight": weights["cls_weight"],
        "box_weight": weights["loc_weight"],
        "code_weights": weights["code_weights"],
        "decoding": center_decoding(config["POST_PROCESSING"], classes),
    }


def center_decoding(config: dict, classes: int) -> dict:
    """POST_PROCESSING of a centre head."""
    nms = config["NMS_CONFIG"]
    per_class = nms["NMS_TYPE"] == "class_specific_nms"
    threshold, pre_max = nms["NMS_THRESH"], nms["NMS_PRE_MAXSIZE"]
    rectify = config.get("USE_IOU_TO_RECTIFY_SCORE", False)
    return {
        "score_threshold": config["SCORE_THRESH"],
        "max_objects": config["MAX_OBJ_PER_SAMPLE"],
        "center_limit": config["POST_CENTER_LIMIT_RANGE"],
        "iou_rectifier": _per_class(config["IOU_RECTIFIER"], classes) if rectify else None,
        "nms_threshold": _per_class(threshold, classes) if per_class else threshold,
        "nms_pre_max": max(pre_max) if isinstance(pre_max, list) else pre_max,
        # the class-wise NMS of the reference ignores NMS_POST_MAXSIZE
        "nms_post_max": None if per_class else nms["NMS_POST_MAXSIZE"],
    }


def center_head(config: dict, classes: int) -> dict:
    """CenterHead."""
    return {
        "type": "CenterHead",
        "shared_channels": config["SHARED_CONV_CHANNEL"],
        "bn_eps": config.get("BN_EPS", 1e-5),
        "bn_momentum": config.get("BN_MOM", 0.1),
        **center_options(config, classes),
    }


def transfusion_head(config: dict, class_names: list[str]) -> dict:
    """TransFusionHead of OpenPCDet."""
    branches = config["SEPARATE_HEAD_CFG"]["HEAD_DICT"]
    assigner = config["TARGET_ASSIGNER_CONFIG"]
    weights = config["LOSS_CONFIG"]["LOSS_WEIGHTS"]
    match = assigner["HUNGARIAN_ASSIGNER"]
    # the classes whose peaks are single cells are numbers in the reference
    points = {"nuScenes": slice(8, 10), "Waymo": slice(1, 3)}.get(assigner["DATASET"], slice(0, 0))
    return {
        "type": "TransFusionHead",
        "channels": config["HIDDEN_CHANNEL"],
        "queries": config["NUM_PROPOSALS"],
        "heads": config["NUM_HEADS"],
        "ffn_channels": config["FFN_CHANNEL"],
        "dropout": config["DROPOUT"],
        "velocity": "vel" in branches,
        "num_convs": {
            **{name: branch["num_conv"] for name, branch in branches.items()},
            "heatmap": config["NUM_HM_CONV"],
        },
        "bias_before_norm": config["USE_BIAS_BEFORE_NORM"],
        "bn_momentum": config["BN_MOMENTUM"],
        "peak_size": config["NMS_KERNEL_SIZE"],
        "point_classes": class_names[points],
        "overlap": assigner["GAUSSIAN_OVERLAP"],
        "min_radius": assigner["MIN_RADIUS"],
        "losses": {
            "heatmap": weights["hm_weight"],
            "classes": weights["cls_weight"],
            "boxes": weights["bbox_weight"],
            "code_weights": weights["code_weights"],
            "focal_alpha": config["LOSS_CONFIG"]["LOSS_CLS"]["alpha"],
            "focal_gamma": config["LOSS_CONFIG"]["LOSS_CLS"]["gamma"],
        },
        "match": {
            "class_weight": match["cls_cost"]["weight"],
            "center_weight": match["reg_cost"]["weight"],
            "iou_weight": match["iou_cost"]["weight"],
            "alpha": match["cls_cost"]["alpha"],
            "gamma": match["cls_cost"]["gamma"],
        },
        "decoding": {
            "score_threshold": config["POST_PROCESSING"]["SCORE_THRESH"],
            "center_limit": config["POST_PROCESSING"]["POST_CENTER_RANGE"],
        },
    }


def _per_class(value, classes: int) -> list[float]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * classes


# ---------------------------------------------------------------- sparse backbones, VoxelNeXt


def sparse_backbone(config: dict) -> dict:
    """VoxelBackBone8x, VoxelResBackBone8x or VoxelResBackBone8xVoxelNeXt."""
    bias = config.get("USE_BIAS", True)
    if config["NAME"] == "VoxelResBackBone8xVoxelNeXt":
        return {
            "type": "VoxelNeXtBackbone",
            "channels": config.get("CHANNELS", [16, 32, 64, 128, 128]),
            "out_channels": config.get("OUT_CHANNEL", 128),
            "kernel_sizes": config.get("SPCONV_KERNEL_SIZES", [3, 3, 3, 3]),
            "bias": bias,
        }
    residual = config["NAME"] == "VoxelResBackBone8x"
    divisor = config.get("width_divisor", 1)
    widths = (16, 32, 64, 128 if residual else 64)
    return {
        "type": "SparseResNet",
        "channels": [width // divisor for width in widths],
        "out_channels": 128 // divisor,
        "residual": residual,
        "bias": bias,
    }


def voxelnext_head(config: dict, classes: int) -> dict:
    """VoxelNeXtHead."""
    return {
        "type": "VoxelNeXtHead",
        "kernel_size": config.get("KERNEL_SIZE_HEAD", 3),
        **center_options(config, classes),
    }


# ---------------------------------------------------------------- point encoders, DSVT


def dynamic_encoder(config: dict) -> dict:
    """DynamicPillarVFE, or its voxel variant DynamicPillarVFE_3d; a detector file says NAME."""
    return {
        "type": "DynamicEncoder",
        "channels": config["NUM_FILTERS"],
        "pillar": config.get("kind", config.get("NAME")) == "DynamicPillarVFE",
    }


def dsvt(config: dict) -> dict:
    """DSVT."""
    layer = config["INPUT_LAYER"]
    return {
        "type": "DSVT",
        "channels": config["d_model"],
        "blocks": [count for _, count in layer["set_info"]],
        "set_size": [size for size, _ in layer["set_info"]],
        "window": layer["window_shape"],
        "hybrid_factor": layer["hybrid_factor"],
        "shift": [shift for _, shift in layer["shifts_list"]],
        "strides": layer["downsample_stride"],
        "reduction": config.get("reduction_type", "attention"),
        "heads": config["nhead"],
        "ffn_channels": config["dim_feedforward"],
        "normalize_pos": layer["normalize_pos"],
    }


# ---------------------------------------------------------------- whole detectors


def detector(config: dict) -> dict:
    """A detector with the roles backbone_3d, dense_head and, if there, vfe and backbone_2d."""
    names, head = config["class_names"], config["dense_head"]
    backbone = config["backbone_3d"]
    heads = {
        "CenterHead": lambda: center_head(head, len(names)),
        "VoxelNeXtHead": lambda: voxelnext_head(head, len(names)),
        "TransFusionHead": lambda: transfusion_head(head, names),
    }
    return {
        "type": "VoxelDetector",
        "point_range": config["point_cloud_range"],
        "voxel_size": config["voxel_size"],
        "class_names": names,
        "encoder": dynamic_encoder(config["vfe"]) if "vfe" in config else {"type": "MeanEncoder"},
        "backbone": dsvt(backbone) if backbone["NAME"] == "DSVT" else sparse_backbone(backbone),
        "bev_backbone": bev_backbone(config["backbone_2d"]) if "backbone_2d" in config else None,
        "head": heads[head["NAME"]](),
    }
