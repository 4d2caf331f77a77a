//! A program in a Pod that uses the cluster's names and ClusterIPs, as applications do.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde::{Deserialize, Serialize};

use super::names::{DNS_SERVICE, ZONE};
use crate::lab::{
    Client, LabError, Namespace,
    dns::{self, Way, look_up},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests to each address.
const REQUESTS: usize = 4;

/// A Service that is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Its name
    pub name: String,
    /// Its namespace
    pub namespace: String,
    /// Its port
    pub port: u16,
}

/// What became of it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Used {
    /// Name of the Service
    pub service: String,
    /// Addresses of the full name, of both families, for each of [`WAYS`] and each of the DNS Service's
    /// addresses
    pub names: Vec<Vec<IpAddr>>,
    /// Addresses that the C library has for the short name
    pub library: Vec<IpAddr>,
    /// Who answered at each address: the address, and the pod
    pub answers: Vec<(SocketAddr, String)>,
    /// What did not work
    pub errors: Vec<String>,
}

/// The ways in which names are asked for.
pub const WAYS: [Way; 3] = [Way::Unconnected, Way::Connected, Way::Tcp];

/// Uses these Services in the calling process's namespace, whose full name is `space`. The process keeps
/// its files for itself from now on; `directory` is for some of these.
///
/// # Errors
///
/// Where the C library cannot be told of the DNS server.
pub fn use_services(
    space: &str,
    directory: &Path,
    targets: &[Target],
) -> Result<Vec<Used>, LabError> {
    let client = Client::new(&Namespace::open(space.to_owned())?).timeout(PATIENCE);
    resolve_by_the_service(directory, targets).map_err(LabError::system("set up the resolver"))?;
    Ok(targets.iter().map(|target| use_one(&client, target)).collect())
}

fn use_one(client: &Client, Target { name, namespace, port }: &Target) -> Used {
    let mut used = Used { service: name.clone(), ..Used::default() };
    let full = format!("{name}.{namespace}.{ZONE}");
    for server in DNS_SERVICE {
        let server = SocketAddr::new(server, dns::PORT);
        for way in WAYS {
            let mut all = Vec::new();
            for v6 in [false, true] {
                match look_up(server, &full, v6, way, PATIENCE) {
                    Ok(found) => all.extend(found),
                    Err(error) => used.errors.push(format!("{full}, {way:?}: {error}")),
                }
            }
            used.names.push(all);
        }
    }
    let sockets: Vec<SocketAddr> = match (name.as_str(), *port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(error) => {
            used.errors.push(format!("{name}, by the C library: {error}"));
            Vec::new()
        }
    };
    used.library = sockets.iter().map(SocketAddr::ip).collect();
    for socket in sockets {
        for _ in 0..REQUESTS {
            match client.ask(socket, None) {
                Ok(answer) => used.answers.push((socket, answer.backend)),
                Err(error) => used.errors.push(format!("{name}: {error}")),
            }
        }
    }
    used
}

/// Has this process alone see a resolv.conf as kubelets write it.
fn resolve_by_the_service(directory: &Path, targets: &[Target]) -> io::Result<()> {
    let namespace = targets.first().map(|one| one.namespace.as_str()).unwrap_or_default();
    let [server, _] = DNS_SERVICE;
    let resolver = format!(
        "nameserver {server}\nsearch {namespace}.{ZONE} {ZONE} cluster.local\n\
         options ndots:5 timeout:5 attempts:3\n"
    );
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted here must not be seen elsewhere.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    for (file, text) in
        [("resolv.conf", resolver.as_str()), ("nsswitch.conf", "hosts: files dns\n")]
    {
        let own: PathBuf = directory.join(file);
        fs::write(&own, text)?;
        let place = Path::new("/etc").join(file);
        match mount(Some(&own), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>) {
            // Without nsswitch.conf, `files dns` is what counts.
            Err(Errno::ENOENT) if file == "nsswitch.conf" => {}
            done => done?,
        }
    }
    Ok(())
}
