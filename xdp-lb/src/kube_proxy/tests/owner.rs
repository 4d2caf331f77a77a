//! Whose chains are whose, and that all others stay.

use super::{
    super::{
        iptables::{Save, Table},
        owner::{Own, is_of_kube_proxy, own},
    },
    IP6TABLES, IPTABLES,
};

fn save(text: &str) -> Save {
    Save::parse(text).unwrap()
}

fn table(text: &str) -> Table {
    save(text).tables["nat"].clone()
}

#[test]
fn chains_are_kube_proxys_by_what_its_own_clean_up_removes() {
    for (table, chain) in [
        ("nat", "KUBE-SVC-3OI236ZBKTWAFB2I"),
        ("nat", "KUBE-MARK-MASQ"),
        ("nat", "KUBE-POSTROUTING"),
        ("filter", "KUBE-FORWARD"),
        ("filter", "KUBE-IPVS-FILTER"),
        ("mangle", "KUBE-PROXY-CANARY"),
    ] {
        assert!(is_of_kube_proxy(table, chain), "{table} {chain}");
    }
    for (table, chain) in [
        ("filter", "KUBE-FIREWALL"),
        ("nat", "KUBE-KUBELET-CANARY"),
        ("mangle", "KUBE-IPTABLES-HINT"),
        ("nat", "KUBE-MARK-DROP"),
        ("nat", "KUBE-ROUTER-SVC"),
        ("filter", "KUBE-SVC-3OI236ZBKTWAFB2I"),
        ("raw", "KUBE-SERVICES"),
        ("nat", "CNI-HOSTPORT-DNAT"),
        ("nat", "MY-KUBE-SVC-X"),
    ] {
        assert!(!is_of_kube_proxy(table, chain), "{table} {chain}");
    }
}

#[test]
fn all_that_is_left_is_what_others_have_made() {
    for text in [IPTABLES, IP6TABLES] {
        let own = own(&save(text));
        for (name, table) in &save(text).tables {
            let Some(own) = own.get(name) else { continue };
            let chains = table.chains.iter().filter(|one| !own.chains.contains(&one.0));
            for (chain, _) in chains {
                let ours = chain.starts_with("KUBE-")
                    && !["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"]
                        .contains(&chain.as_str());
                assert!(!ours, "{chain} is left");
            }
            assert!(own.kept.is_empty(), "{:?}", own.kept);
            // Each rule goes or stays; none that stays leads to what goes.
            let mut staying = table.rules.clone();
            staying.retain(|rule| {
                let gone =
                    |(chain, text): &(String, String)| *chain == rule.chain && *text == rule.text;
                let jump = own.jumps.iter().any(|one| one.0 == rule.chain && one.2 == rule.text);
                !own.rules.iter().any(gone) && !jump
            });
            assert_eq!(staying.len() + own.rules.len() + own.jumps.len(), table.rules.len());
            for rule in staying {
                let target = rule.target().unwrap_or_default();
                assert!(!own.chains.iter().any(|chain| chain == target), "{rule:?}");
            }
        }
    }
}

const SMALL: &str = "\
*nat
:PREROUTING ACCEPT [7:420]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:MINE - [0:0]
-A PREROUTING -j MINE
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -i eth9 -j ACCEPT
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-MARK-MASQ
-A MINE -p tcp -j ACCEPT
COMMIT
";

#[test]
fn a_removal_is_one_transaction_of_its_own_rules() {
    assert_eq!(
        Own::of("nat", &table(SMALL)).removal("nat"),
        "*nat\n\
         :KUBE-MARK-MASQ - [0:0]\n\
         :KUBE-POSTROUTING - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n\
         :KUBE-SVC-A - [0:0]\n\
         -D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -D POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -X KUBE-MARK-MASQ\n\
         -X KUBE-POSTROUTING\n\
         -X KUBE-SERVICES\n\
         -X KUBE-SVC-A\n\
         COMMIT\n"
    );
}

#[test]
fn what_others_lead_to_stays_with_all_that_it_needs() {
    // A CNI's plug-in for host ports may mark packets by kube-proxy's chain.
    let text = SMALL.replace("-A MINE -p tcp -j ACCEPT", "-A MINE -p tcp -j KUBE-MARK-MASQ");
    let own = Own::of("nat", &table(&text));
    assert_eq!(own.chains, ["KUBE-SERVICES", "KUBE-SVC-A"]);
    assert_eq!(own.kept["KUBE-MARK-MASQ"], "a rule in MINE leads to it");
    assert_eq!(own.kept["KUBE-POSTROUTING"], "KUBE-MARK-MASQ stays, whose marks it masquerades");
    assert_eq!(own.jumps.len(), 1, "that into KUBE-POSTROUTING stays");

    // Somebody's own rule is none of kube-proxy's jumps.
    let text = SMALL.replace("-A MINE -p tcp -j ACCEPT", "-A MINE -j KUBE-SERVICES");
    let own = Own::of("nat", &table(&text));
    assert!(own.is_empty(), "{own:?}");
    assert_eq!(own.kept["KUBE-SVC-A"], "KUBE-SERVICES stays, which leads to it");
    assert_eq!(own.kept.len(), 4);

    // An older kubelet's.
    let text = SMALL.replace(":MINE", ":KUBE-MARK-DROP - [0:0]\n:MINE");
    let own = Own::of("nat", &table(&text));
    assert_eq!(own.chains, ["KUBE-SERVICES", "KUBE-SVC-A"]);
    assert!(own.kept["KUBE-POSTROUTING"].contains("kubelet's"));
}

#[test]
fn rules_come_back_to_their_places_whatever_is_there() {
    let before = Own::of("nat", &table(SMALL));
    let chains = ":KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n";
    let rules = "\
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-MARK-MASQ
COMMIT
";
    let services =
        "PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n";
    let services_at = |place| services.replace("PREROUTING ", &format!("PREROUTING {place} "));
    let postrouting =
        "POSTROUTING 1 -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n";
    let wanted = |place| format!("*nat\n{chains}-I {}-I {postrouting}{rules}", services_at(place));
    // All others are there.
    let removed = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j MINE\n-A PREROUTING -i eth9 -j ACCEPT\nCOMMIT\n";
    assert_eq!(before.restoration("nat", &table(removed)), wanted(2));
    // None of them is, nor is the table.
    assert_eq!(before.restoration("nat", &Table::default()), wanted(1));
    // All is there: what is put back a second time takes the first one's place.
    let again = before.restoration("nat", &table(SMALL));
    let deleted = postrouting.replace(" 1 ", " ");
    let twice = format!(
        "*nat\n{chains}-D {services}-D {deleted}-I {}-I {postrouting}{rules}",
        services_at(2)
    );
    assert_eq!(again, twice);
}
