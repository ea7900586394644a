"""R1, mIoU and mAP of moments within recordings."""
