//! Forms as clients write them, and as nobody should.

use super::*;

const MEDIA: &str = "multipart/form-data; boundary=XyZ";

fn form(parts: &[(&str, &str)]) -> String {
    let part = |(head, content): &(&str, &str)| {
        format!("--XyZ\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    };
    parts.iter().map(part).collect::<String>() + "--XyZ--\r\n"
}

#[test]
fn fields_files_and_escapes_are_read() {
    let body = form(&[
        ("name=\"model\"", "whisper-1"),
        ("name=\"file\"; filename=\"a \\\"b\\\".wav\"\r\nContent-Type: audio/wav", "RIFF\r\n--Xy\r\n"),
        ("name=plain", ""),
        ("name=\"a\\\\b\"", "ü"),
    ]);
    let read = Form::parse(MEDIA, body.as_bytes()).unwrap();
    let told: Vec<(&str, bool, &[u8])> =
        read.parts.iter().map(|part| (&*part.name, part.is_file, part.content)).collect();
    assert_eq!(
        told,
        [
            ("model", false, &b"whisper-1"[..]),
            ("file", true, b"RIFF\r\n--Xy\r\n"),
            ("plain", false, b""),
            ("a\\b", false, "ü".as_bytes()),
        ]
    );
    assert_eq!(read.file("file"), Some(&b"RIFF\r\n--Xy\r\n"[..]));
    assert_eq!((read.parts[1].text(), read.parts[3].text()), (None, Some("ü")));
}

#[test]
fn changes_leave_every_other_byte() {
    let body: Bytes = form(&[("name=\"a\"", "1"), ("name=\"model\"", "mine"), ("name=\"b\"", "2")]).into();
    let read = Form::parse(MEDIA, &body).unwrap();
    let renamed = read.rebuilt(&body, &[(1, Change::Say("whisper-1".into()))]);
    assert_eq!(renamed, form(&[("name=\"a\"", "1"), ("name=\"model\"", "whisper-1"), ("name=\"b\"", "2")]));
    assert_eq!(with_model(MEDIA, &body, "whisper-1"), renamed);
    let fewer = read.rebuilt(&body, &[(0, Change::Remove), (2, Change::Remove)]);
    assert_eq!(fewer, form(&[("name=\"model\"", "mine")]));
    let none = read.rebuilt(&body, &[(0, Change::Remove), (1, Change::Remove), (2, Change::Remove)]);
    assert_eq!(none, form(&[]));
    assert_eq!(with_model(MEDIA, &none, "m"), form(&[("name=\"model\"", "m")]));
    let unnamed = read.rebuilt(&body, &[(1, Change::Remove)]);
    let named = form(&[("name=\"model\"", "m"), ("name=\"a\"", "1"), ("name=\"b\"", "2")]);
    assert_eq!(with_model(MEDIA, &unnamed, "m"), named);
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let whole = form(&[("name=\"model\"", "m")]);
    let cut = &whole[..whole.len() - 10];
    for (why, body) in [
        ("preamble", format!("hello\r\n{whole}")),
        ("cut", cut.to_owned()),
        ("empty", String::new()),
        ("other boundary inside", whole.replace("\r\nm\r\n", "\r\n\r\n--XyZabc\r\nm\r\n")),
        ("no name", form(&[("x=\"y\"", "1")])),
        ("not form-data", whole.replace("form-data", "attachment")),
        ("two dispositions", form(&[("name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"", "1")])),
        ("no headers", "--XyZ\r\n\r\nm\r\n--XyZ--\r\n".to_owned()),
        ("endless headers", format!("--XyZ\r\nx: {}\r\n\r\nm\r\n--XyZ--", "y".repeat(MAX_HEAD))),
        ("many parts", form(&vec![("name=\"a\"", "1"); MAX_PARTS + 1])),
    ] {
        assert!(Form::parse(MEDIA, body.as_bytes()).is_err(), "{why}");
    }
    let twice = form(&[("name=\"model\"", "a"), ("name=\"model\"", "b")]);
    assert!(Form::parse(MEDIA, twice.as_bytes()).unwrap().only("model").is_err());
}

#[test]
fn boundaries_are_read_as_clients_write_them() {
    let body = form(&[("name=\"model\"", "m")]);
    for media in [
        "multipart/form-data; boundary=XyZ",
        "Multipart/Form-Data;boundary=\"XyZ\"",
        "multipart/form-data; charset=utf-8; BOUNDARY=XyZ",
    ] {
        assert!(Form::parse(media, body.as_bytes()).is_ok(), "{media}");
    }
    for media in [
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=XyZ",
    ] {
        assert!(Form::parse(media, body.as_bytes()).is_err(), "{media}");
    }
}
