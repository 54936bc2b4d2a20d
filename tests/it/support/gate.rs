//! A door in front of a server: shut, nobody gets through, and the server loses nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use tailor_testkit::free_port;

/// Both ends of a connection, which lives as long as anybody speaks through it.
type Pair = (TcpStream, TcpStream);
type Pairs = Arc<Mutex<Vec<Weak<Pair>>>>;

/// What has gone through, both ways together, and after how much the connections are cut once.
#[derive(Default)]
struct Traffic {
    bytes: AtomicU64,
    cut_at: AtomicU64,
    shut_at: AtomicU64,
}

pub struct Gate {
    port: u16,
    target: u16,
    open: Arc<AtomicBool>,
    pairs: Pairs,
    traffic: Arc<Traffic>,
    accepting: Option<JoinHandle<()>>,
}

impl Gate {
    /// An open gate before a loopback port.
    pub fn before(target: u16) -> Self {
        let (open, pairs, traffic) = (Arc::default(), Arc::default(), Arc::new(Traffic::default()));
        traffic.cut_at.store(u64::MAX, Ordering::SeqCst);
        traffic.shut_at.store(u64::MAX, Ordering::SeqCst);
        let mut gate = Self { port: free_port(), target, open, pairs, traffic, accepting: None };
        gate.open();
        gate
    }

    /// Cuts the connection over which this many more bytes have gone; those that follow live.
    pub fn cut_after(&self, bytes: u64) {
        self.traffic.cut_at.store(self.bytes() + bytes, Ordering::SeqCst);
    }

    /// Shuts once this many more bytes have gone: in the middle of something, and nothing after it gets through.
    pub fn shut_after(&self, bytes: u64) {
        self.traffic.shut_at.store(self.bytes() + bytes, Ordering::SeqCst);
    }

    /// Bytes that have gone through until now.
    pub fn bytes(&self) -> u64 {
        self.traffic.bytes.load(Ordering::SeqCst)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn open(&mut self) {
        self.shut();
        self.traffic.shut_at.store(u64::MAX, Ordering::SeqCst);
        let listener = TcpListener::bind(("127.0.0.1", self.port)).expect("bind the gate");
        listener.set_nonblocking(true).expect("a listener that can be ended");
        self.open.store(true, Ordering::SeqCst);
        let (open, pairs, target) = (self.open.clone(), self.pairs.clone(), self.target);
        let traffic = self.traffic.clone();
        self.accepting = Some(std::thread::spawn(move || {
            while open.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((caller, _)) => join(caller, target, &pairs, &traffic, &open),
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        }));
    }

    /// New connections are refused and those that exist are cut.
    pub fn shut(&mut self) {
        self.open.store(false, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        cut(&self.pairs);
    }
}

fn cut(pairs: &Pairs) {
    for pair in pairs.lock().expect("pairs").drain(..).filter_map(|pair| pair.upgrade()) {
        let _ = (pair.0.shutdown(Shutdown::Both), pair.1.shutdown(Shutdown::Both));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shut();
    }
}

fn join(caller: TcpStream, target: u16, pairs: &Pairs, traffic: &Arc<Traffic>, open: &Arc<AtomicBool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { return };
    caller.set_nonblocking(false).expect("blocking stream");
    let pair = Arc::new((caller, server));
    for to_server in [true, false] {
        let (pair, traffic, all, open) = (pair.clone(), traffic.clone(), pairs.clone(), open.clone());
        std::thread::spawn(move || {
            let (mut from, mut to) = if to_server { (&pair.0, &pair.1) } else { (&pair.1, &pair.0) };
            let mut buffer = [0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let gone = traffic.bytes.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
                if gone >= traffic.shut_at.load(Ordering::SeqCst) {
                    open.store(false, Ordering::SeqCst);
                    return cut(&all);
                }
                let cut_at = traffic.cut_at.load(Ordering::SeqCst);
                let is_the_one =
                    || traffic.cut_at.compare_exchange(cut_at, u64::MAX, Ordering::SeqCst, Ordering::SeqCst).is_ok();
                if gone >= cut_at && is_the_one() {
                    let _ = (pair.0.shutdown(Shutdown::Both), pair.1.shutdown(Shutdown::Both));
                    return;
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    let mut pairs = pairs.lock().expect("pairs");
    pairs.retain(|pair| pair.strong_count() > 0);
    pairs.push(Arc::downgrade(&pair));
}
