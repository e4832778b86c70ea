//! Software nobody here wrote, found on this machine.

use std::path::{Path, PathBuf};

use crate::mesh::{Daemon, Mesh};

/// A program, or `None` with a message. With `CI=true` a missing one is a failure.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = folders.into_iter().map(|folder| folder.join(program)).find(|file| file.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed (cargo xtask test installs it)"));
    }
    found
}

/// Says why a test does not run.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
    eprintln!("skipped: {why}");
}

/// An nginx beside the proxy of `service`, listening on `port`, serving and taking files of any size.
pub(crate) fn nginx(mesh: &Mesh, service: &str, port: u16) -> Option<Daemon> {
    let program = find("nginx")?;
    let folder = mesh.folder().join("nginx");
    for part in ["html", "tmp"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    std::fs::write(folder.join("html/hello.txt"), "hello from nginx\n").unwrap();
    let shown = folder.display();
    let config = format!(
        "daemon off; master_process off; pid {shown}/pid; error_log stderr warn;
events {{ worker_connections 512; }}
http {{
  access_log off; default_type text/plain; client_max_body_size 0;
  client_body_temp_path {shown}/tmp; proxy_temp_path {shown}/tmp; fastcgi_temp_path {shown}/tmp;
  uwsgi_temp_path {shown}/tmp; scgi_temp_path {shown}/tmp;
  server {{ listen 127.0.0.1:{port}; root {shown}/html; }}
}}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    Some(mesh.run("nginx", service, &[&path(&program), "-c", &path(&file), "-p", &path(&folder)]))
}
