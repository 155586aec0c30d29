//! Picture files: PNG and JPEG, decoded and encoded by the `image` crate. Any failure is an error that names the file.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, ImageResult,
};
use natten::{Error, Result};

use super::picture::{Picture, WHITE};
use crate::output;

/// Of 100. Less would put artefacts where the noise was.
const JPEG_QUALITY: u8 = 95;

/// Reads a picture. What it is shows from its contents, not from its name. A rotation that a camera noted in the file is
/// carried out, since it would be lost otherwise.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Invalid`] where it is not a whole PNG or JPEG picture.
pub(super) fn load(path: &Path) -> Result<Picture> {
    let bytes = fs::read(path)
        .map_err(|source| Error::Io { action: format!("read '{}'", path.display()), source })?;
    let invalid = |why: String| {
        Error::invalid(
            "picture",
            format!("'{}'", path.display()),
            format!("it cannot be read as a picture: {why}"),
            "name a PNG or JPEG file",
        )
    };
    let format = image::guess_format(&bytes).map_err(|_| invalid("its format is not known".to_owned()))?;
    if format == ImageFormat::Jpeg && !has_end_of_image(&bytes) {
        return Err(invalid("it is truncated".to_owned()));
    }
    decode(&bytes, format).map_err(|error| invalid(error.to_string()))
}

fn decode(bytes: &[u8], format: ImageFormat) -> ImageResult<Picture> {
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder()?;
    let (orientation, profile) = (decoder.orientation()?, decoder.icc_profile()?);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);

    let color = image.color();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let channels = if color.has_color() { 3 } else { 1 };
    // 8-bit samples become 16-bit ones exactly, so that there is one way from here on.
    let samples: Vec<u16> =
        if color.has_color() { image.into_rgba16().into_raw() } else { image.into_luma_alpha16().into_raw() };
    let (pixels, whole) = (samples.chunks_exact(channels + 1), f32::from(u16::MAX));
    let level = |&sample: &u16| f32::from(sample) * WHITE / whole;
    Ok(Picture {
        width,
        height,
        channels,
        levels: pixels.clone().flat_map(|pixel| pixel[..channels].iter().map(level)).collect(),
        alpha: color.has_alpha().then(|| pixels.map(|pixel| pixel[channels]).collect()),
        is_deep: color.bytes_per_pixel() / color.channel_count() > 1,
        profile,
    })
}

/// Whether a JPEG file goes on to its end. The decoder fills what is missing of a truncated picture with grey, and
/// would not tell. What follows the end, such as a camera's video, is no concern.
fn has_end_of_image(bytes: &[u8]) -> bool {
    // Behind the start marker there are segments: a marker, and the length of what belongs to it. Behind the header of
    // a scan there are its bits, in which 0xff is followed by 0 or by a restart marker.
    let mut at = 2;
    loop {
        match bytes.get(at..) {
            Some([0xff, 0xd9, ..]) => return true,
            Some([0xff, 0xff, ..] | [0xff, 0x00 | 0x01 | 0xd0..=0xd7, ..]) => at += 1,
            Some([0xff, _, high, low, ..]) => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
            Some([byte, ..]) if *byte != 0xff => at += 1,
            _ => return false,
        }
    }
}

/// The format that a name's extension stands for.
///
/// # Errors
/// [`Error::Invalid`] where it is none that can be written.
pub(super) fn format_of(path: &Path) -> Result<ImageFormat> {
    match ImageFormat::from_path(path) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg)) => Ok(format),
        _ => Err(Error::invalid(
            "output",
            format!("'{}'", path.display()),
            "its extension must tell the format",
            "use .png, .jpg or .jpeg",
        )),
    }
}

/// Encodes a picture in the format that the name's extension stands for, at the depth of the picture where the format
/// has it.
///
/// # Errors
/// [`Error::Invalid`] as [`format_of`], and for a picture that the format cannot hold.
pub(super) fn encode(picture: &Picture, path: &Path) -> Result<Vec<u8>> {
    let format = format_of(path)?;
    check_alpha(picture, path)?;
    let mut bytes = Vec::new();
    let encoded = match format {
        ImageFormat::Jpeg => write(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY), picture, false),
        _ => write(PngEncoder::new(&mut bytes), picture, picture.is_deep),
    };
    let invalid = |error: image::ImageError| {
        Error::invalid(
            "output",
            format!("'{}'", path.display()),
            format!("the picture, {}, cannot be written so: {error}", picture.describe()),
            "name a .png file",
        )
    };
    encoded.map(|()| bytes).map_err(invalid)
}

/// Refuses to drop an alpha channel.
///
/// # Errors
/// [`Error::Invalid`] where `path` is a JPEG file and the picture has an alpha channel.
pub(super) fn check_alpha(picture: &Picture, path: &Path) -> Result<()> {
    if picture.alpha.is_some() && format_of(path)? == ImageFormat::Jpeg {
        return Err(Error::invalid(
            "output",
            format!("'{}'", path.display()),
            "the picture has an alpha channel, and JPEG has none",
            "name a .png file",
        ));
    }
    Ok(())
}

fn write(mut encoder: impl ImageEncoder, picture: &Picture, is_deep: bool) -> ImageResult<()> {
    let color = match (picture.channels, picture.alpha.is_some(), is_deep) {
        (1, false, false) => ExtendedColorType::L8,
        (1, false, true) => ExtendedColorType::L16,
        (1, true, false) => ExtendedColorType::La8,
        (1, true, true) => ExtendedColorType::La16,
        (_, false, false) => ExtendedColorType::Rgb8,
        (_, false, true) => ExtendedColorType::Rgb16,
        (_, true, false) => ExtendedColorType::Rgba8,
        (_, true, true) => ExtendedColorType::Rgba16,
    };
    if let Some(profile) = &picture.profile {
        encoder.set_icc_profile(profile.clone()).map_err(image::ImageError::Unsupported)?;
    }
    // Both came from 32-bit numbers when the picture was decoded; side by side they may exceed them, and the encoder
    // refuses a buffer that does not fit the size.
    let side = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    encoder.write_image(&picture.samples(is_deep), side(picture.width), side(picture.height), color)
}

/// Writes encoded pictures, each whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn save(path: &Path, encoded: &[u8]) -> Result<()> {
    output::write(path, |writer| writer.write_all(encoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(channels: usize, has_alpha: bool, is_deep: bool) -> Picture {
        let (width, height) = (5, 3);
        let level = |index: usize| (index * 53 % 256) as f32 + if is_deep { 20.0 / 257.0 } else { 0.0 };
        let alpha = |index: usize| if is_deep { (index * 4001) as u16 } else { (index * 17) as u16 * 257 };
        Picture {
            width,
            height,
            channels,
            levels: Vec::new(),
            alpha: has_alpha.then(|| (0..width * height).map(alpha).collect()),
            is_deep,
            profile: None,
        }
        .with_levels((0..width * height * channels).map(level).collect())
    }

    #[test]
    fn png_keeps_everything() {
        for channels in [1, 3] {
            for (has_alpha, is_deep) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut picture = picture(channels, has_alpha, is_deep);
                picture.profile = Some(b"a colour profile".to_vec());
                let bytes = encode(&picture, Path::new("x.PNG")).unwrap();
                assert_eq!(decode(&bytes, ImageFormat::Png).unwrap(), picture);
            }
        }
    }

    #[test]
    fn jpeg_keeps_the_picture_nearly() {
        for channels in [1, 3] {
            let mut flat = picture(channels, false, true);
            flat.levels.fill(100.0);
            flat.profile = Some(b"a colour profile".to_vec());
            let bytes = encode(&flat, Path::new("x.jpeg")).unwrap();
            let back = decode(&bytes, ImageFormat::Jpeg).unwrap();
            assert_eq!((back.channels, back.is_deep, &back.profile), (channels, false, &flat.profile));
            assert!(back.levels.iter().all(|level| (level - 100.0).abs() <= 2.0));
        }
        let message = encode(&picture(3, true, false), Path::new("x.jpg")).unwrap_err().to_string();
        assert!(message.contains("alpha") && message.contains(".png"), "{message}");
    }

    #[test]
    fn a_jpeg_is_whole_or_refused() {
        let jpeg = encode(&picture(3, false, false), Path::new("x.jpg")).unwrap();
        assert!(has_end_of_image(&jpeg));
        assert!(has_end_of_image(&[&jpeg[..], b"something behind it"].concat()));
        for length in 0..jpeg.len() {
            assert!(!has_end_of_image(&jpeg[..length]), "{length}");
        }
    }

    #[test]
    fn a_camera_held_sideways_is_put_right() {
        let mut upright = picture(1, false, false);
        upright.levels = (0..15).map(|index| if index % 5 < 2 { 0.0 } else { 255.0 }).collect();
        let jpeg = encode(&upright, Path::new("x.jpg")).unwrap();
        // A segment of Exif data behind the start marker: one entry, orientation (0x112) 6, turn right.
        let exif =
            b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned = [&jpeg[..2], exif, &jpeg[2..]].concat();
        let picture = decode(&turned, ImageFormat::Jpeg).unwrap();
        assert_eq!((picture.width, picture.height), (3, 5));
        // What was on the left is now on top.
        assert!(picture.levels[..3].iter().all(|&level| level < 60.0), "{:?}", picture.levels);
        assert!(picture.levels[9..].iter().all(|&level| level > 195.0), "{:?}", picture.levels);
    }

    #[test]
    fn extensions_decide() {
        for (name, format) in
            [("a.png", ImageFormat::Png), ("a.b.JPG", ImageFormat::Jpeg), ("d/a.jpeg", ImageFormat::Jpeg)]
        {
            assert_eq!(format_of(Path::new(name)).unwrap(), format);
        }
        for name in ["a", "a.gif", "a.webp", "png", ".png", "a.png.", ""] {
            let message = format_of(Path::new(name)).unwrap_err().to_string();
            assert!(message.contains(&format!("'{name}'")) && message.contains(".jpeg"), "{message}");
        }
    }
}
