//! Images, and the VMs that share them, as clients of `marud` see them; the monitors are fake, the disks are not.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::client::{Client, ClientError};
use api::{TaskState, VmState};
use disk::Format;
use disk::import::Format as Foreign;
use disk::tool::{self, AnyFormat, Existing, Job, NewDisk};
use serde_json::{Value, json};
use support::{Asking, TestHost, spec, until};

const JSON: (&str, &str) = ("content-type", "application/json");
const SIZE: usize = 1 << 20;
const VHDX: AnyFormat = AnyFormat::Own(Format::Vhdx);

/// All that is in the volume, hidden or not, beside the kernel.
fn files(host: &TestHost) -> Vec<String> {
    let mut found = host.files();
    found.retain(|file| file != "vmlinuz");
    found
}

fn raw(byte: u8) -> Vec<u8> {
    let mut disk = vec![0; SIZE];
    disk[..4096].fill(byte);
    disk
}

fn new(format: Format) -> NewDisk {
    NewDisk { format, ..NewDisk::default() }
}

/// What a disk holds, through its whole chain, of which only the beginning is not zeros.
fn content(path: &Path) -> (u64, u8) {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("disk.raw");
    tool::convert((path, VHDX), &to, &new(Format::Raw), Existing::Keep, &Job::default()).unwrap();
    let bytes = fs::read(to).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == bytes[0]) && bytes[4096..].iter().all(|byte| *byte == 0));
    (bytes.len() as u64, bytes[0])
}

fn place(host: &TestHost, file: &str) -> PathBuf {
    host.volume(file.strip_prefix("local:").unwrap())
}

fn sha256(bytes: &[u8]) -> String {
    host::auth::sha256(bytes)
}

fn post<T: serde::de::DeserializeOwned>(client: &Client, path: &str, body: &Value) -> T {
    client.call("POST".parse().unwrap(), path, Some(body)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn posted(client: &Client, path: &str, body: &Value) -> api::Task {
    client.wait(post(client, path, body), |_| {}).unwrap_or_else(|error| panic!("{path} {body}: {error}"))
}

fn refusal(client: &Client, method: &str, path: &str, body: &Value) -> (u16, String) {
    client.refusal(method, path, &[JSON], &serde_json::to_vec(body).unwrap())
}

/// Imports what must not become an image; the code of the reason.
fn fails(client: &Client, body: &Value) -> (String, String) {
    let task: api::Task = post(client, "/images?wait=20", body);
    assert_eq!(task.state, TaskState::Failed, "{body}: {task:?}");
    let error = task.error.unwrap();
    (error.code, error.message)
}

fn image(client: &Client, name: &str) -> api::Image {
    client.get(&format!("/images/{name}")).unwrap()
}

fn images(client: &Client, query: &str) -> Vec<String> {
    client.list::<api::Image>(&format!("/images{query}")).unwrap().into_iter().map(|image| image.name).collect()
}

/// An image `base` that begins with this byte; its file is all that there is of it.
fn with_base(host: &TestHost, client: &Client, byte: u8) -> api::Image {
    fs::write(host.volume("base.raw"), raw(byte)).unwrap();
    posted(client, "/images", &json!({"name": "base", "source": "local:base.raw"}));
    fs::remove_file(host.volume("base.raw")).unwrap();
    image(client, "base")
}

fn from_base(name: &str, disk: Value) -> Value {
    let mut wanted = spec(name, "");
    wanted["disks"] = json!([disk]);
    wanted
}

#[test]
fn an_image_is_made_of_a_disk_of_any_format_that_is_found_out() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("a.raw"), raw(7)).unwrap();
    let from = (&*host.volume("a.raw"), AnyFormat::Own(Format::Raw));
    for (file, format) in [("b.bin", Foreign::Qcow2), ("c.bin", Foreign::Vmdk)] {
        tool::export(from, &host.volume(file), format, Existing::Keep, &Job::default()).unwrap();
    }
    for (file, format) in [("d.bin", Format::Vhdx), ("e.bin", Format::Vhd)] {
        tool::convert(from, &host.volume(file), &new(format), Existing::Keep, &Job::default()).unwrap();
    }
    let fixed = NewDisk { disk_type: Some(tool::DiskType::Fixed), ..new(Format::Vhd) };
    tool::convert(from, &host.volume("f.bin"), &fixed, Existing::Keep, &Job::default()).unwrap();
    let formats = [
        ("a.raw", api::ImageFormat::Raw),
        ("b.bin", api::ImageFormat::Qcow2),
        ("c.bin", api::ImageFormat::Vmdk),
        ("d.bin", api::ImageFormat::Vhdx),
        ("e.bin", api::ImageFormat::Vhd),
        ("f.bin", api::ImageFormat::Vhd),
    ];
    let before = files(&host);
    for (file, format) in formats {
        let bytes = fs::read(host.volume(file)).unwrap();
        let wanted = json!({"name": file, "source": format!("local:{file}"), "sha256": sha256(&bytes).to_uppercase()});
        let task = posted(&client, "/images", &wanted);
        assert_eq!((task.image.as_deref(), task.operation), (Some(file), api::Operation::ImportImage));
        let progress = task.progress.unwrap();
        assert!(progress.done == progress.total && progress.total == 2 * bytes.len() as u64, "{progress:?}");
        let image = image(&client, file);
        assert_eq!((image.source_format, image.sha256, image.source_bytes), (format, sha256(&bytes), bytes.len() as u64));
        assert_eq!((image.virtual_bytes, image.error, image.created_by.as_str()), (SIZE as u64, None, "admin"));
        assert_eq!(content(&place(&host, &image.file)), (SIZE as u64, 7));
        assert_eq!(client.get::<api::Image>(&format!("/images/{}", image.id)).unwrap().name, file, "by its id, too");
        assert!(fs::read(host.volume(file)).unwrap() == bytes, "what it was made from stays as it is");
    }
    // As what it is said to be, if that is said.
    posted(&client, "/images", &json!({"name": "b-as-raw", "source": "local:b.bin", "format": "raw"}));
    assert_eq!(image(&client, "b-as-raw").virtual_bytes, fs::metadata(host.volume("b.bin")).unwrap().len().next_multiple_of(512));

    assert_eq!(images(&client, "?name=c.bin"), ["c.bin"]);
    assert_eq!(images(&client, "?volume=local&limit=2").len(), 7, "all of them, part by part");
    assert_eq!(images(&client, "?volume=other"), [""; 0]);
    let part: Value = client.get("/images?fields=name&limit=1").unwrap();
    assert_eq!(part, json!({"items": [{"name": "a.raw"}], "next": "a.raw"}));
    for name in images(&client, "") {
        client.call::<()>("DELETE".parse().unwrap(), &format!("/images/{name}"), None::<&()>).unwrap();
    }
    assert_eq!((files(&host), images(&client, "").len()), (before, 0));
    let told = client.list::<api::Event>("/events").unwrap();
    let count = |kind| told.iter().filter(|event| event.kind == kind).count();
    assert_eq!((count(api::EventKind::ImageCreated), count(api::EventKind::ImageDeleted)), (7, 7));
}

#[test]
fn what_is_no_disk_or_needs_another_file_becomes_no_image() {
    let host = TestHost::new();
    let client = host.client();
    fs::write(host.volume("secret.raw"), raw(9)).unwrap();
    let secret = host.volume("secret.raw").display().to_string();
    let mut backed = vec![0; 4 << 16];
    backed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    backed[8..20].copy_from_slice(&[&[0, 0, 0, 0, 0, 0, 0, 72][..], &(secret.len() as u32).to_be_bytes()].concat());
    backed[20..32].copy_from_slice(&[&16_u32.to_be_bytes()[..], &(1_u64 << 20).to_be_bytes()].concat());
    backed[36..56]
        .copy_from_slice(&[&1_u32.to_be_bytes()[..], &(3_u64 << 16).to_be_bytes(), &(1_u64 << 16).to_be_bytes()].concat());
    backed[56..60].copy_from_slice(&1_u32.to_be_bytes());
    backed[72..72 + secret.len()].copy_from_slice(secret.as_bytes());
    let parent = host.directory.path().join("parent.vhdx");
    tool::create(&parent, &NewDisk { size: Some(SIZE as u64), ..new(Format::Vhdx) }).unwrap();
    tool::create(&host.volume("child"), &NewDisk { parent: Some((parent, Format::Vhdx)), ..new(Format::Vhdx) }).unwrap();
    let descriptor = format!("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\nRW 2048 FLAT \"{secret}\" 0\n");
    let junk = |signature: &[u8]| [signature, &[0x5a; 70_000]].concat();
    for (file, bytes) in [
        ("backed", backed),
        ("descriptor", descriptor.into_bytes()),
        ("empty", Vec::new()),
        ("gzip", junk(b"\x1f\x8b")),
        ("qcow2", junk(b"QFI\xfb")),
        ("vmdk", junk(b"KDMV")),
        ("vhdx", junk(b"vhdxfile")),
        ("vhd", junk(b"conectix")),
    ] {
        fs::write(host.volume(file), bytes).unwrap();
    }
    let before = files(&host);
    let wanted = |file: &str| json!({"name": "x", "source": format!("local:{file}")});
    for (file, said) in [
        ("backed", "refers to"),
        ("child", "differencing"),
        ("descriptor", "refers to"),
        ("empty", "empty"),
        ("gzip", "gunzip"),
        ("qcow2", "qcow2"),
        ("vmdk", "header"),
        ("vhdx", "VHDX"),
        ("vhd", "VHD"),
    ] {
        let (code, message) = fails(&client, &wanted(file));
        assert!(code == "bad-image" && message.contains(said), "{file}: {code}: {message}");
    }
    let mut other = wanted("secret.raw");
    other["sha256"] = "0".repeat(64).into();
    assert_eq!(fails(&client, &other).0, "wrong-checksum");
    // A disk that is being written.
    let mut vm = spec("web", "");
    vm["disks"] = json!([{"file": "local:secret.raw"}]);
    client.create(&vm);
    let writer = disk::Disk::open(
        host.volume("secret.raw"),
        disk::OpenOptions { access: disk::Access::ReadWrite, ..disk::OpenOptions::default() },
    );
    assert_eq!(fails(&client, &wanted("secret.raw")).0, "bad-image");
    drop(writer);
    // What makes no sense makes no task.
    let post = |body: &Value| refusal(&client, "POST", "/images", body);
    std::os::unix::fs::symlink("/etc/hostname", host.volume("link")).unwrap();
    for file in ["link", "../secret", "none", ""] {
        let (status, code) = post(&wanted(file));
        assert!(status == 422 && matches!(code.as_str(), "bad-file" | "no-file"), "{file}: {status} {code}");
    }
    fs::remove_file(host.volume("link")).unwrap();
    let with = |field: &str, value: Value| {
        let mut body = wanted("secret.raw");
        body[field] = value;
        post(&body)
    };
    for name in ["", "a/b", "..", "7d9b5e0a-53f2-4d9e-9f0f-3f6f3a3a2b11"] {
        assert_eq!(with("name", name.into()), (422, "bad-name".into()), "{name}");
    }
    assert_eq!(with("sha256", "00".into()), (422, "bad-checksum".into()));
    assert_eq!(with("volume", "other".into()), (422, "no-volume".into()));
    assert_eq!(with("format", "iso".into()), (422, "bad-body".into()));
    assert_eq!(with("description", "x".repeat(1001).into()), (422, "bad-image".into()));
    assert_eq!(with("boot", json!({"kernel": "local:none"})), (422, "no-file".into()));
    assert_eq!((files(&host), images(&client, "").len()), (before, 0));
}

#[test]
fn vms_share_an_image_that_nobody_changes_and_outlives_them() {
    let host = TestHost::new();
    let client = host.client();
    let base = with_base(&host, &client, 7);
    let own = base.file.strip_prefix("local:").unwrap().to_owned();
    let before = fs::read(place(&host, &base.file)).unwrap();
    let create = |wanted: &Value| refusal(&client, "POST", "/vms", wanted);
    assert_eq!(create(&from_base("web", json!({"image": "bas"}))), (422, "no-image".into()));
    assert_eq!(create(&from_base("web", json!({"image": "base", "size_bytes": 512}))), (422, "bad-vm".into()));
    assert_eq!(create(&from_base("web", json!({"image": "base", "file": "local:a.raw"}))), (422, "bad-vm".into()));
    // Its file is no disk, under no name.
    for file in [base.file.clone(), base.file.replace("images/", "images//"), base.file.replace("images/", "images/./")] {
        assert_eq!(create(&from_base("web", json!({ "file": file }))), (409, "image-file".into()));
        assert_eq!(create(&from_base("web", json!({"file": file, "read_only": true}))), (409, "image-file".into()));
    }
    assert_eq!(files(&host), [own.as_str()]);

    let web = client.create(&from_base("web", json!({"image": "base"})));
    assert_eq!((web.spec.disks[0].file.as_str(), &web.spec.disks[0].image), ("local:web/disk0.vhdx", &None));
    let large = 4 * SIZE as u64;
    client.create(&from_base("db", json!({"image": base.id, "size_bytes": large, "file": "local:db/data/root.vhdx"})));
    assert_eq!(content(&host.volume("web/disk0.vhdx")), (SIZE as u64, 7));
    assert_eq!(content(&host.volume("db/data/root.vhdx")), (large, 7));
    for name in ["web", "db"] {
        client.does(&format!("POST /vms/{name}/start"));
    }
    assert_eq!(image(&client, "base").vms, ["db", "web"]);
    assert_eq!(refusal(&client, "DELETE", "/images/base", &json!(null)), (409, "image-in-use".into()));
    let refused = client.call::<()>("DELETE".parse().unwrap(), "/images/base", None::<&()>).unwrap_err();
    assert!(refused.to_string().contains("db, web"), "it names them: {refused}");
    // One more disk, while it runs; by its id, so that a new name does not matter.
    let add = json!({"disks": [{"id": "disk0"}, {"image": "base"}]});
    let task: api::Task = client.patch("/vms/web", "*", &add).unwrap();
    client.wait(task, |_| {}).unwrap();
    assert_eq!(content(&host.volume("web/disk1.vhdx")), (SIZE as u64, 7));
    let again = json!({"disks": [{"id": "disk0", "image": "base"}]});
    assert_eq!(refusal(&client, "PATCH", "/vms/web", &again), (422, "bad-vm".into()));
    for name in ["web", "db"] {
        client.does(&format!("POST /vms/{name}/stop"));
    }
    // Copies of it need no image; linked clones do.
    posted(&client, "/vms/db/clone", &json!({"name": "copy"}));
    posted(&client, "/vms/db/clone", &json!({"name": "linked", "linked": true}));
    assert_eq!(image(&client, "base").vms, ["db", "linked", "web"]);
    posted(&client, "/vms/linked/export", &json!({"to": "local:out/linked"}));
    posted(&client, "/vms/import", &json!({"from": "local:out/linked", "name": "back"}));
    assert_eq!(content(&place(&host, &client.vm("back").spec.disks[0].file)), (large, 7));
    // A checkpoint needs what the VM was made from then, whatever the VM is now.
    posted(&client, "/vms/web/checkpoints", &json!({"name": "before"}));
    let task: api::Task = client.patch("/vms/web", "*", &json!({"disks": []})).unwrap();
    client.wait(task, |_| {}).unwrap();
    for name in ["db", "linked"] {
        client.does(&format!("DELETE /vms/{name}?disks=delete"));
    }
    assert_eq!(image(&client, "base").vms, ["web"]);
    assert_eq!(refusal(&client, "DELETE", "/images/base", &json!(null)), (409, "image-in-use".into()));
    client.does("DELETE /vms/web?disks=delete");
    assert!(fs::read(place(&host, &base.file)).unwrap() == before, "nobody changed it, and it is there");
    client.call::<()>("DELETE".parse().unwrap(), "/images/base", None::<&()>).unwrap();
    assert!(!place(&host, &base.file).exists());
    for name in ["copy", "back"] {
        assert_eq!(content(&place(&host, &client.vm(name).spec.disks[0].file)), (large, 7), "{name} needs no image");
        client.does(&format!("POST /vms/{name}/start"));
    }
}

#[test]
fn an_image_says_what_its_vms_boot_and_can_be_renamed() {
    let host = TestHost::new();
    let client = host.client();
    with_base(&host, &client, 1);
    let mut wanted = from_base("web", json!({"image": "base"}));
    wanted.as_object_mut().unwrap().remove("boot");
    assert_eq!(refusal(&client, "POST", "/vms", &wanted), (422, "bad-vm".into()));
    let change = |body: &Value| client.call::<api::Image>("PATCH".parse().unwrap(), "/images/base", Some(body));
    change(&json!({"boot": {"kernel": "local:vmlinuz", "command_line": "root=/dev/vda1"}, "description": "A system"})).unwrap();
    let web = client.create(&wanted);
    assert_eq!((web.spec.boot.kernel.as_str(), web.spec.boot.command_line.as_str()), ("local:vmlinuz", "root=/dev/vda1"));
    wanted["name"] = "quiet".into();
    wanted["boot"] = json!({"command_line": "quiet"});
    assert_eq!(client.create(&wanted).spec.boot.command_line, "quiet");

    fs::write(host.volume("other.raw"), raw(2)).unwrap();
    posted(&client, "/images", &json!({"name": "other", "source": "local:other.raw"}));
    assert_eq!(refusal(&client, "PATCH", "/images/base", &json!({"name": "other"})), (409, "name-taken".into()));
    assert_eq!(
        refusal(&client, "POST", "/images", &json!({"name": "other", "source": "local:other.raw"})),
        (409, "name-taken".into())
    );
    assert_eq!(refusal(&client, "PATCH", "/images/base", &json!({"name": "a/b"})), (422, "bad-name".into()));
    assert_eq!(refusal(&client, "PATCH", "/images/base", &json!({"sha256": ""})), (422, "bad-body".into()));
    let renamed = change(&json!({"name": "debian", "boot": null})).unwrap();
    assert_eq!((renamed.name.as_str(), renamed.boot, renamed.description.as_str()), ("debian", None, "A system"));
    assert_eq!(renamed.vms, ["quiet", "web"]);
    assert_eq!(refusal(&client, "GET", "/images/base", &json!(null)), (404, "not-found".into()));
    let meant = client.get::<api::Image>("/images/debain").unwrap_err().to_string();
    assert!(meant.contains("did you mean 'debian'?"), "{meant}");
    assert_eq!(images(&client, ""), ["debian", "other"]);
}

fn upload(client: &Client, query: &str, bytes: &[u8]) -> Result<api::Task, ClientError> {
    let (task, sent) = client.upload::<api::Task>(&format!("/images/{query}"), bytes, bytes.len() as u64)?;
    assert_eq!(sent, sha256(bytes));
    client.wait(task, |_| {})
}

fn code(error: ClientError) -> (u16, String) {
    match error {
        ClientError::Refused { status, error } => (status, error.code),
        other => panic!("{other}"),
    }
}

/// Begins to send an image of these bytes, and sends no more of them.
fn half(host: &TestHost, name: &str, length: &str, bytes: &[u8]) -> impl Read + Write + use<> {
    let mut stream = host.connect();
    let secret = fs::read_to_string(host.directory.path().join("state/admin.token")).unwrap();
    let head = format!(
        "PUT /api/v1/images/{name} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n{length}\r\nconnection: close\r\n\r\n",
        secret.trim()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
    stream.flush().unwrap();
    stream
}

#[test]
fn an_image_is_made_of_what_is_sent_and_of_nothing_less() {
    let host = TestHost::new();
    let client = host.client();
    // Longer than any other body may be.
    let mut bytes = raw(5);
    bytes.resize(5 << 20, 0);
    let sum = sha256(&bytes);
    upload(&client, &format!("sent?sha256={sum}&description=It%20is&kernel=local:vmlinuz"), &bytes).unwrap();
    let sent = image(&client, "sent");
    assert_eq!((sent.source.as_str(), sent.sha256, sent.source_bytes), ("upload", sum, 5 << 20));
    assert_eq!((sent.description.as_str(), sent.boot.unwrap().kernel.as_str()), ("It is", "local:vmlinuz"));
    assert_eq!(content(&place(&host, &sent.file)), (5 << 20, 5));
    let only = [sent.file.strip_prefix("local:").unwrap().to_owned()];
    until("what was sent is not kept twice", || (files(&host) == only).then_some(()));

    let refused = |query: &str, bytes: &[u8]| code(upload(&client, query, bytes).unwrap_err());
    assert_eq!(refused("sent", &bytes), (409, "name-taken".into()));
    assert_eq!(refused(&format!("x?sha256={}", "0".repeat(64)), &bytes), (422, "wrong-checksum".into()));
    assert_eq!(refused("x?sha256=0", &bytes), (422, "bad-checksum".into()));
    assert_eq!(refused("x?volume=other", &bytes), (422, "no-volume".into()));
    assert_eq!(refused("x?colour=red", &bytes), (400, "bad-parameter".into()));
    assert_eq!(refused("a%2Fb", &bytes), (422, "bad-name".into()));
    assert_eq!(refused("x", b""), (422, "bad-image".into()));
    // Refused before it is sent: nobody has as much.
    let endless = client.upload::<api::Task>("/images/x", std::io::repeat(0), 1 << 60).unwrap_err();
    assert_eq!(code(endless), (409, "no-space".into()));
    let form = [("content-type", "multipart/form-data; boundary=x")];
    assert_eq!(client.refusal("PUT", "/images/x", &form, b"--x"), (415, "not-octets".into()));
    assert!(
        matches!(upload(&client, "x", b"\x1f\x8b compressed"), Err(ClientError::TaskFailed(error)) if error.code == "bad-image")
    );
    until("nothing of all this", || (files(&host) == only).then_some(()));
    assert_eq!(images(&client, ""), ["sent"]);

    // Of no known length.
    let mut stream = half(&host, "chunked", "transfer-encoding: chunked", b"400\r\n");
    stream.write_all(&[vec![3; 1024], b"\r\n0\r\n\r\n".to_vec()].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    until("the image", || images(&client, "?name=chunked").first().cloned());
    client.call::<()>("DELETE".parse().unwrap(), "/images/chunked", None::<&()>).unwrap();

    // Half of it, from clients that wait or go: nobody else waits, and nothing of it stays.
    let slow: Vec<_> = (0..8).map(|number| half(&host, &format!("slow{number}"), "content-length: 9000000", &bytes)).collect();
    until("what they have sent", || (files(&host).len() == 9).then_some(()));
    upload(&client, "quick", &bytes).unwrap();
    client.create(&from_base("web", json!({"image": "quick"})));
    assert_eq!(client.vm("web").state, VmState::Off);
    assert!(files(&host).len() >= 11, "they wait still");
    drop(slow);
    until("nothing of it", || (files(&host).len() == 3).then_some(()));
    assert_eq!(images(&client, ""), ["quick", "sent"]);
    assert_eq!(client.list::<api::Task>("/tasks?state=running").unwrap().len(), 0);
}

#[test]
fn roles_hold_for_images_and_each_change_is_in_the_audit_log() {
    let host = TestHost::new();
    let admin = host.client();
    with_base(&host, &admin, 1);
    let token = |role: &str| post::<api::CreatedToken>(&admin, "/tokens", &json!({"name": role, "role": role})).secret;
    let viewer = host.client_with(&token("viewer"));
    assert_eq!(images(&viewer, ""), ["base"]);
    assert_eq!(refusal(&viewer, "DELETE", "/images/base", &json!(null)), (403, "role".into()));
    assert_eq!(code(viewer.upload::<api::Task>("/images/x", &b"x"[..], 1).unwrap_err()), (403, "role".into()));
    upload(&host.client_with(&token("operator")), "x", &raw(1)).unwrap();
    assert_eq!(image(&admin, "x").created_by, "operator");
    let audit = fs::read_to_string(host.directory.path().join("state/audit.log")).unwrap();
    assert!(audit.contains(r#""method":"PUT","path":"/images/x","status":202"#), "{audit}");
}

#[test]
fn an_import_ends_when_that_is_wanted_and_a_volume_with_an_image_stays() {
    let host = TestHost::new();
    let client = host.client();
    fs::File::create(host.volume("large.raw")).unwrap().set_len(64 << 30).unwrap();
    let wanted = json!({"name": "large", "source": "local:large.raw"});
    let task: api::Task = post(&client, "/images", &wanted);
    assert_eq!(refusal(&client, "POST", "/images", &wanted), (409, "name-taken".into()), "it is being made");
    until("its beginning", || {
        let now: api::Task = client.get(&format!("/tasks/{}", task.id)).unwrap();
        now.progress.filter(|progress| progress.done > 0)
    });
    let task: api::Task = client.post(&format!("/tasks/{}/cancel?wait=20", task.id)).unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    // The name is free again; the same request is done once.
    fs::File::create(host.volume("large.raw")).unwrap().set_len(1 << 20).unwrap();
    let body = serde_json::to_vec(&wanted).unwrap();
    let ask = || {
        let mut response = client.send("POST".parse().unwrap(), "/images", &[JSON, ("idempotency-key", "k")], &body).unwrap();
        serde_json::from_str::<api::Task>(&response.body_mut().read_to_string().unwrap()).unwrap()
    };
    let (first, second) = (ask(), ask());
    assert_eq!(first.id, second.id);
    client.wait(first, |_| {}).unwrap();
    let directory = tempfile::tempdir().unwrap();
    post::<api::Volume>(&client, "/volumes", &json!({"name": "more", "path": directory.path()}));
    posted(&client, "/images", &json!({"name": "more", "source": "local:large.raw", "volume": "more"}));
    assert_eq!(refusal(&client, "DELETE", "/volumes/more", &json!(null)), (409, "volume-in-use".into()));
    let volume: api::Volume = client.get("/volumes/more").unwrap();
    assert!(volume.allocated_bytes > 0 && volume.provisioned_bytes == volume.allocated_bytes, "{volume:?}");
    client.call::<()>("DELETE".parse().unwrap(), "/images/more", None::<&()>).unwrap();
    client.call::<()>("DELETE".parse().unwrap(), "/volumes/more", None::<&()>).unwrap();
    assert_eq!(files(&host).len(), 2);
}

#[test]
fn images_and_their_vms_are_whole_or_not_there_whenever_marud_was_killed() {
    let mut host = TestHost::new();
    let base = with_base(&host, &host.client(), 7);
    fs::File::create(host.volume("source.raw")).unwrap().set_len(100 << 20).unwrap();
    let mut sent = raw(3);
    sent.resize(30 << 20, 3);
    sent[4096..].fill(0);
    let before = files(&host);
    let rounds = std::env::var("MARU_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(40);
    let mut whole = [0; 4];
    for round in 0..rounds {
        let (client, bytes) = (host.client(), sent.clone());
        let kind = (round % 4) as usize;
        if kind == 3 {
            with_base_named(&host, &client, "gone");
        }
        let asking = std::thread::spawn(move || match kind {
            0 => drop(client.call::<api::Task>(
                "POST".parse().unwrap(),
                "/images?wait=60",
                Some(&json!({"name": "new", "source": "local:source.raw"})),
            )),
            1 => drop(client.upload::<api::Task>("/images/new?wait=60", &bytes[..], bytes.len() as u64)),
            2 => drop(client.call::<api::Vm>("POST".parse().unwrap(), "/vms", Some(&from_base("web", json!({"image": "base"}))))),
            _ => drop(client.call::<()>("DELETE".parse().unwrap(), "/images/gone", None::<&()>)),
        });
        // Through all that is done, step by step.
        let step = [10_000, 10_000, 1_000, 500][kind];
        std::thread::sleep(Duration::from_micros((round / 4 * step) % (step * 40)));
        host.kill();
        asking.join().unwrap();
        host.start();
        let client = host.client();
        for task in client.list::<api::Task>("/tasks").unwrap() {
            client.wait(task, |_| {}).unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        let settled = || client.list::<api::Vm>("/vms").unwrap().iter().all(|vm| vm.state != VmState::Unknown).then_some(());
        until("all VMs were looked at", settled);
        for new in client.list::<api::Image>("/images").unwrap().into_iter().filter(|image| image.name != "base") {
            assert_eq!((new.error, place(&host, &new.file).exists()), (None, true), "round {round}");
            let expected = [(100 << 20, 0), (30 << 20, 3), (0, 0), (SIZE as u64, 8)][kind];
            assert_eq!(content(&place(&host, &new.file)), expected, "round {round}");
            client.call::<()>("DELETE".parse().unwrap(), &format!("/images/{}", new.name), None::<&()>).unwrap();
            whole[kind] += 1;
        }
        for vm in client.list::<api::Vm>("/vms").unwrap() {
            assert_eq!(content(&place(&host, &vm.spec.disks[0].file)), (SIZE as u64, 7), "round {round}");
            client.does("DELETE /vms/web?disks=delete");
            whole[kind] += 1;
        }
        until("the end of uploads", || (files(&host).len() <= before.len()).then_some(()));
        assert_eq!(files(&host), before, "round {round}");
        assert_eq!(image(&client, "base").file, base.file);
    }
    println!("of {rounds} rounds, these were whole afterwards (import, upload, VM) or still there (deletion): {whole:?}");
}

fn with_base_named(host: &TestHost, client: &Client, name: &str) {
    fs::write(host.volume("named.raw"), raw(8)).unwrap();
    posted(client, "/images", &json!({"name": name, "source": "local:named.raw"}));
    fs::remove_file(host.volume("named.raw")).unwrap();
}
