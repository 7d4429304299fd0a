"""Writes small DICOM slides, as scanners and converters do."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

SERIES = "1.2.826.0.1.3680043.8.498.1"
TILE = 64


def write_instance(path, pixels, *, mpp=0.25, series=SERIES, image_type="VOLUME", number=1, whole_slide=True):
    """Writes a DICOM file of JPEG tiles in YBR_FULL, which OpenSlide refuses; returns its path.

    Args:
      path: of the file.
      pixels: uint8 [h, w, 3].
      mpp: um per pixel.
      series: SeriesInstanceUID.
      image_type: third value of ImageType.
      number: of the instance within the series.
      whole_slide: its kind is that of slides, and not of CT.
    """
    height, width = pixels.shape[:2]
    tiles = []
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            part = pixels[top : top + TILE, left : left + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, "JPEG", quality=95, subsampling=0)
            tiles.append(stream.getvalue())
    kind = VLWholeSlideMicroscopyImageStorage if whole_slide else CTImageStorage
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{series}.{number}"
    data.SeriesInstanceUID, data.StudyInstanceUID, data.FrameOfReferenceUID = series, "1.2.3", f"{series}.0"
    data.Modality, data.InstanceNumber = "SM", number
    data.ImageType = ["ORIGINAL", "PRIMARY", image_type, "NONE"]
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.Rows = data.Columns = TILE
    data.NumberOfFrames, data.DimensionOrganizationType = len(tiles), "TILED_FULL"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    data.ImagedVolumeDepth, data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 0.001, 1, 1
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.LossyImageCompression, data.FocusMethod, data.ExtendedDepthOfField = "01", "AUTO", "NO"
    data.OpticalPathSequence = [Dataset()]
    data.OpticalPathSequence[0].OpticalPathIdentifier = "0"
    measures, groups = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    groups.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [groups]
    data.PixelData = encapsulate(tiles)
    data["PixelData"].is_undefined_length = True
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path
