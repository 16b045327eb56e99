"""Every layout by name: where images, masks and lists lie on users' disks, and how each kind of mask is read.

voc             JPEGImages/*, SegmentationClass/*.png, lists in ImageSets/Segmentation, one's own names in classes.txt
voc_aug         the same images; SegmentationClassAug/*.png with lists in ImageSets/SegmentationAug, or VOC's own masks
                and SBD's cls/*.mat, with the list (VOC ∪ SBD) − VOC val
sbd             img/*.jpg, cls/*.mat, train.txt, val.txt
context         JPEGImages/* of VOC 2010; SegmentationClassContext/*.png, or trainval/*.mat with 459 labels and
                labels.txt; lists in ImageSets/SegmentationContext or ImageSets/Main
context_detail  the same, with masks in the alphabetical class order of the Detail API
folders         images/SPLIT/*, masks/SPLIT/*.png, classes.txt; no lists
cityscapes      leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, gtFine/SPLIT/CITY/*_gtFine_labelIds.png (or labelTrainIds)
ade20k          images/training/*.jpg, annotations/training/*.png, and validation; zero is void
"""

from __future__ import annotations

from collections.abc import Callable

from models.data.folders import ade20k, cityscapes, folders
from models.data.layout import Layout
from models.data.voc import context, context_detail, sbd, voc, voc_aug

LAYOUTS: dict[str, Callable[..., Layout]] = {
    "voc": voc,
    "voc_aug": voc_aug,
    "sbd": sbd,
    "context": context,
    "context_detail": context_detail,
    "folders": folders,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
}
