#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::expect_used, reason = "measure")]
use integration_tests::engine::{Bench, step};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use runner::ports::Executor as _;

struct Raw { path: String, conn: UnixStream }
impl Raw {
    fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        write!(self.conn, "{method} /v4.0.0/libpod{path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let (mut head, mut one) = (Vec::new(), [0u8; 1]);
        while !head.ends_with(b"\r\n\r\n") { self.conn.read_exact(&mut one).unwrap(); head.push(one[0]); }
        let head = String::from_utf8(head).unwrap();
        let status: u16 = head[9..12].parse().unwrap();
        let lower = head.to_lowercase();
        let mut out = Vec::new();
        if lower.contains("transfer-encoding: chunked") {
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") { self.conn.read_exact(&mut one).unwrap(); line.push(one[0]); }
                let n = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
                let mut chunk = vec![0; n + 2];
                self.conn.read_exact(&mut chunk).unwrap();
                if n == 0 { break }
                out.extend_from_slice(&chunk[..n]);
            }
        } else if let Some(n) = lower.split("content-length: ").nth(1) {
            out = vec![0; n.split("\r\n").next().unwrap().parse().unwrap()];
            self.conn.read_exact(&mut out).unwrap();
        }
        (status, out)
    }
    fn attach(&self, id: &str) -> UnixStream {
        let mut s = UnixStream::connect(&self.path).unwrap();
        write!(s, "POST /v4.0.0/libpod/containers/{id}/attach?stream=true&stdout=true&stderr=true&logs=false HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n").unwrap();
        let (mut head, mut one) = (Vec::new(), [0u8; 1]);
        while !head.ends_with(b"\r\n\r\n") { s.read_exact(&mut one).unwrap(); head.push(one[0]); }
        s
    }
}
fn id(b: &[u8]) -> String { serde_json::from_slice::<serde_json::Value>(b).unwrap()["Id"].as_str().unwrap().to_owned() }

fn floor(url: &str, image: &str, n: usize, run: &str) -> Duration {
    let path = url.strip_prefix("unix://").unwrap().to_owned();
    let mut raw = Raw { conn: UnixStream::connect(&path).unwrap(), path };
    let mut on = image.to_owned();
    let begun = Instant::now();
    for i in 0..n {
        let body = format!(r#"{{"image":"{on}","command":["true"],"init":true,"name":"f-{run}-{i}","netns":{{"nsmode":"none"}},"labels":{{"bob.run":"{run}"}}}}"#);
        let (s, b) = raw.ask("POST", "/containers/create", &body);
        assert_eq!(s, 201, "{}", String::from_utf8_lossy(&b));
        let c = id(&b);
        let mut a = raw.attach(&c);
        let (s, _) = raw.ask("POST", &format!("/containers/{c}/start"), "");
        assert_eq!(s, 204);
        let mut o = Vec::new();
        a.read_to_end(&mut o).unwrap();
        loop {
            let (_, b) = raw.ask("GET", &format!("/containers/{c}/json"), "");
            let v: serde_json::Value = serde_json::from_slice(&b).unwrap();
            if matches!(v["State"]["Status"].as_str(), Some("exited" | "stopped")) { break }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (s, b) = raw.ask("POST", &format!("/commit?container={c}&repo=localhost/bob-run/f&tag={run}&pause=false"), "");
        assert!(s < 300);
        on = id(&b);
    }
    begun.elapsed()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let (n, rounds) = (args[0], args[1]);
    let (mut f, mut e) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let bench = Bench::of_environment().unwrap();
        let (url, image, run) = (bench.url.clone(), bench.run.image.clone(), bench.run.run.to_string());
        if std::env::var("NOFLOOR").is_err() {
            let t = tokio::task::spawn_blocking(move || floor(&url, &image, n, &run)).await.unwrap();
            f.push(t.as_secs_f64() * 1000.0 / n as f64);
            bench.podman.destroy(&bench.run.run).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let bench = Bench::of_environment().unwrap();
        let begun = Instant::now();
        let mut on = bench.prepare().await;
        let mut parts = [0.0; 2];
        for i in 0..n {
            let s = step(i, &["true"]);
            let t = Instant::now();
            let (ran, _) = bench.step(&on, &s).await;
            parts[0] += t.elapsed().as_secs_f64();
            let t = Instant::now();
            on = bench.podman.checkpoint(&bench.run, ran.left, &s).await.unwrap();
            parts[1] += t.elapsed().as_secs_f64();
        }
        e.push(begun.elapsed().as_secs_f64() * 1000.0 / n as f64);
        let d = Instant::now();
        bench.podman.destroy(&bench.run.run).await.unwrap();
        println!("floor {:.1} ours {:.1} (run {:.1} keep {:.1}) destroy {:?}", f.last().unwrap_or(&0.0), e.last().unwrap(), parts[0] * 1000.0 / n as f64, parts[1] * 1000.0 / n as f64, d.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let med = |v: &mut Vec<f64>| { v.sort_by(f64::total_cmp); v.get(v.len() / 2).copied().unwrap_or(0.0) };
    println!("n {n}: floor {:.1} ours {:.1} ratio {:.2}", med(&mut f), med(&mut e), med(&mut e) / med(&mut f));
}
