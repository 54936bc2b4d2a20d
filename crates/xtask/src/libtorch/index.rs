//! Finds a wheel's address in the package index that pip is configured for (PEP 503 and PEP 691).

use std::env;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ureq::Agent;

const DEFAULT_INDEX: &str = "https://pypi.org/simple";
const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.1";
/// The largest page of a project seen is below 2 MB.
const PAGE_LIMIT_BYTES: u64 = 64 << 20;
const TRIES: u64 = 4;

/// The index: `PIP_INDEX_URL`, else pip's own setting, else PyPI.
pub fn configured() -> String {
    let chosen = env::var("PIP_INDEX_URL").ok().or_else(pip_setting).unwrap_or_else(|| DEFAULT_INDEX.to_owned());
    chosen.trim().trim_end_matches('/').to_owned()
}

fn pip_setting() -> Option<String> {
    let mut pip = Command::new("python3");
    let output = pip.args(["-m", "pip", "config", "get", "global.index-url"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then_some(text)
}

/// The address of a file of a project.
pub fn find(agent: &Agent, index: &str, project: &str, filename: &str) -> Result<String> {
    let page_url = format!("{index}/{project}/");
    let remedy = "check the network and the proxy settings (HTTPS_PROXY), or name another index by PIP_INDEX_URL, or \
                  your own libtorch by TAILOR_LIBTORCH";
    let context = || format!("cannot read the package index at {page_url}; {remedy}");
    let mut tries = 1;
    let page = loop {
        match read_page(agent, &page_url) {
            Ok(page) => break page,
            Err(failure) if failure.transient && tries < TRIES => thread::sleep(Duration::from_secs(tries)),
            Err(failure) => return Err(failure.error).with_context(context),
        }
        tries += 1;
    };
    let link = link_in_json(&page, filename).or_else(|| link_in_html(&page, filename));
    let link = link.with_context(|| format!("the package index at {page_url} has no {filename}; {remedy}"))?;
    Ok(resolve(&page_url, &link))
}

struct Failure {
    /// Worth another try: the connection, or a busy server.
    transient: bool,
    error: anyhow::Error,
}

fn read_page(agent: &Agent, url: &str) -> Result<String, Failure> {
    let response = agent.get(url).header("Accept", ACCEPT).call();
    let mut response = response.map_err(|error| Failure { transient: true, error: error.into() })?;
    match response.status().as_u16() {
        200 => {}
        status => {
            let transient = matches!(status, 408 | 429 | 500..=599);
            return Err(Failure { transient, error: anyhow!("HTTP {status}") });
        }
    }
    let page = response.body_mut().with_config().limit(PAGE_LIMIT_BYTES).read_to_string();
    page.map_err(|error| Failure { transient: true, error: error.into() })
}

fn link_in_json(page: &str, filename: &str) -> Option<String> {
    let page: serde_json::Value = serde_json::from_str(page).ok()?;
    let file =
        page.get("files")?.as_array()?.iter().find(|file| file.get("filename").is_some_and(|name| name == filename))?;
    Some(file.get("url")?.as_str()?.to_owned())
}

fn link_in_html(page: &str, filename: &str) -> Option<String> {
    let links = page.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut bare = links.map(|link| link.split('#').next().unwrap_or(link));
    bare.find(|link| link.rsplit('/').next() == Some(filename)).map(str::to_owned)
}

/// A link as seen from a page: absolute, from the host's root, or relative.
fn resolve(page_url: &str, link: &str) -> String {
    if link.contains("://") {
        return link.to_owned();
    }
    let host_end = page_url.find("://").map_or(0, |at| at + 3);
    let path_at = page_url[host_end..].find('/').map_or(page_url.len(), |at| host_end + at);
    let (host, path) = page_url.split_at(path_at);
    if link.starts_with('/') {
        return format!("{host}{link}");
    }
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    format!("{host}/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_page_gives_the_link_of_the_exact_file() {
        let page = r#"{"files":[{"filename":"a-1-cp311.whl","url":"https://f/1"},{"filename":"a-1.whl","url":"https://f/2"}]}"#;
        assert_eq!(link_in_json(page, "a-1.whl").as_deref(), Some("https://f/2"));
        assert_eq!(link_in_json(page, "a-2.whl"), None);
    }

    #[test]
    fn html_page_gives_the_link_without_its_fragment() {
        let page =
            r#"<a href="../../f/xa-1.whl#sha256=0">xa</a><br><a href="../../f/a-1.whl#sha256=1" data-x="y">a</a>"#;
        assert_eq!(link_in_html(page, "a-1.whl").as_deref(), Some("../../f/a-1.whl"));
    }

    #[test]
    fn links_are_resolved_against_the_page() {
        let page = "https://mirror.example/root/simple/torch/";
        assert_eq!(resolve(page, "https://files.example/t.whl"), "https://files.example/t.whl");
        assert_eq!(resolve(page, "/files/t.whl"), "https://mirror.example/files/t.whl");
        assert_eq!(resolve(page, "../../files/t.whl"), "https://mirror.example/root/files/t.whl");
        assert_eq!(resolve(page, "t.whl"), "https://mirror.example/root/simple/torch/t.whl");
    }
}
