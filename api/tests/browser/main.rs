//! The page in a real browser.
#![expect(clippy::unwrap_used, reason = "these are tests, their helper functions included")]

mod chromium;
#[path = "../common/mod.rs"]
mod common;
mod stage;
mod world;

use std::{sync::Arc, time::Duration};

use common::Scratch;
use serde_json::{Value, json};
use stage::{CELLS, Stage, memory, with_page};
use tokio::time::sleep;
use world::{few, many};
use xdp_lb_api::{
    server::Settings,
    view::{BackendState, Owner},
};

const READ: &str = "read-0123456789abcdef";
const WRITE: &str = "write-0123456789abcdef";

#[test]
fn rates_and_shares_are_live_and_nothing_moves_when_they_change() {
    with_page(
        |_, _| {},
        async |mut stage| {
            few(memory(&stage));
            stage.flow();
            stage.open("").await;
            let page = &mut stage.browser;
            page.wait("document.querySelectorAll('main tbody tr').length === 7").await;
            // The third frontend takes 3 × 1200 packets a second, by steps of a second.
            page.wait(&format!("{CELLS}.some((row) => /^[1-9][0-9.]* k$/.test(row[5]))")).await;
            page.sees("2 of 5 in trouble").await;
            page.sees("handover").await;
            page.wait(
                "/^[1-9][0-9.]* k\\/s$/.test(document.querySelector('.tile .value').innerText)",
            )
            .await;
            page.picture("services-light").await;
            page.scheme("dark").await;
            page.picture("services-dark").await;
            page.scheme("light").await;

            page.eval(
                "window.moved = 0; new PerformanceObserver((list) => { for (const one of \
            list.getEntries()) window.moved += one.value }).observe({type: 'layout-shift'})",
            )
            .await;
            sleep(Duration::from_secs(5)).await;
            assert_eq!(page.eval("window.moved").await, json!(0), "five seconds of live numbers");

            page.eval("location.hash = '#/service/cdn%2Fedge'").await;
            page.sees("Maglev share").await;
            // 251 slots over four backends, and the first gets two of five packets.
            page.wait(&format!(
                "{CELLS}.some((row) => row[6] === '25.1 %' && row[7] === '40.0 %')"
            ))
            .await;
            page.wait(&format!("{CELLS}.filter((row) => row[7] === '20.0 %').length === 3")).await;
            page.picture("service-light").await;
            page.scheme("dark").await;
            page.picture("service-dark").await;
            page.scheme("light").await;

            page.eval("location.hash = '#/service/shop%2Fapi'").await;
            page.sees("HTTP 503 instead of 200-399, since ").await;
            page.sees("no neighbour answers for 10.0.0.1 on eth0").await;
            page.picture("service-trouble").await;
            page.eval("location.hash = '#/service/default%2Fweb'").await;
            page.sees("1,204 recorded flows left").await;

            page.eval("location.hash = '#/counters'").await;
            page.sees("No route or no neighbour").await;
            page.wait(&format!(
                "{CELLS}.some((row) => row[0].startsWith('no_frontend') && Number(row[2]) > 800)"
            ))
            .await;
            page.picture("counters").await;
            page.eval("location.hash = '#/instance'").await;
            page.sees("default/web").await;
            for text in ["eth1", "generic", "10.0.0.0/16", "84,304 of 4,194,304 words"] {
                page.sees(text).await;
            }
            page.picture("instance").await;
            page.eval("location.hash = '#/backends?state=trouble'").await;
            page.wait("document.querySelectorAll('main tbody tr').length === 4").await;
            page.picture("backends").await;
            stage.server.memory.happen("somebody wrote to map services: put right");
            let page = &mut stage.browser;
            page.eval("location.hash = '#/events'").await;
            page.sees("somebody wrote to map services: put right").await;
            page.sees("it started").await;
            page.picture("events").await;
            stage.ends_well();
        },
    );
}

#[test]
fn thousands_of_services_are_searched_sorted_and_paged() {
    with_page(
        |_, _| {},
        async |mut stage| {
            many(memory(&stage), 5000);
            stage.flow();
            stage.open("").await;
            let page = &mut stage.browser;
            page.sees("1–50 of 5,000").await;
            page.sees("5,000 services").await;
            assert_eq!(page.eval(&format!("{CELLS}.length")).await, 50);
            page.picture("many").await;
            page.eval("[...document.querySelectorAll('button')].find((one) => one.innerText === 'Next').click()").await;
            page.sees("51–100 of 5,000").await;
            page.wait("location.hash === '#/services?page=2'").await;
            page.tab_to("(node) => node.type === 'search'").await;
            page.type_text("service-0000 team-07").await;
            page.wait(&format!(
                "{CELLS}.length === 1 && {CELLS}[0][0].includes('team-07/service-00007')"
            ))
            .await;
            page.wait("location.hash.startsWith('#/services?q=service-0000')").await;
            page.type_text("x").await;
            page.sees("Nothing matches the search.").await;

            // An address with a search is one that can be sent.
            stage.open("?again#/services?state=trouble").await;
            let page = &mut stage.browser;
            page.wait(&format!("{CELLS}.length === 10")).await;
            page.sees("1 of 2 in trouble").await;
            stage.open("?more#/services?sort=-packets%2Fs").await;
            let page = &mut stage.browser;
            page.wait(&format!("{CELLS}[0]?.[5] === '25.2 k' || {CELLS}[0]?.[5]?.endsWith(' k')"))
                .await;
            let rates =
                page.eval(&format!("{CELLS}.slice(0, 20).map((row) => parseFloat(row[5]))")).await;
            let rates: Vec<f64> = serde_json::from_value(rates).unwrap();
            assert!(rates.is_sorted_by(|a, b| a >= b), "{rates:?}");
            stage.ends_well();
        },
    );
}

#[test]
fn everything_can_be_done_with_the_keyboard() {
    with_page(
        |_, _| {},
        async |mut stage| {
            few(memory(&stage));
            stage.open("").await;
            let page = &mut stage.browser;
            page.sees("mail/smtp").await;
            page.key("Tab").await;
            assert_eq!(page.eval("document.activeElement.innerText").await, "Skip to the content");
            page.picture("keyboard-skip").await;
            page.key("Enter").await;
            page.wait("document.activeElement.id === 'main'").await;
            page.tab_to("(node) => node.innerText === 'Backends' && node.className === 'sort'")
                .await;
            // The focus is seen.
            page.wait("getComputedStyle(document.activeElement).outlineStyle === 'solid'").await;
            page.key("Enter").await;
            page.wait("document.querySelector('[aria-sort]').innerText.startsWith('Backends')")
                .await;
            page.tab_to("(node) => node.innerText === 'mail/smtp'").await;
            // The focus stays where it is while figures change.
            stage.flow();
            sleep(Duration::from_secs(3)).await;
            let page = &mut stage.browser;
            assert_eq!(page.eval("document.activeElement.innerText").await, "mail/smtp");
            page.key("Enter").await;
            page.wait("document.activeElement.tagName === 'H1' && document.activeElement.innerText === 'mail/smtp'").await;

            // A backend is drained, once that is confirmed; who changes his mind leaves by Escape.
            let drains = "(node) => node.getAttribute('aria-label') === 'Drain 10.0.3.11:8080'";
            page.tab_to(drains).await;
            page.key("Enter").await;
            page.sees("Drain 10.0.3.11:8080?").await;
            page.sees("Remove it from the service").await;
            page.picture("drain").await;
            page.key("Escape").await;
            page.wait("!document.querySelector('dialog').open").await;
            let drained = |stage: &Stage| {
                let services = memory(stage).services.borrow().clone();
                services.by_name["mail/smtp"].drained.clone()
            };
            assert_eq!(drained(&stage), [""; 0]);
            let page = &mut stage.browser;
            assert_eq!(page.eval(&format!("({drains})(document.activeElement)")).await, true);
            page.key("Enter").await;
            page.sees("Drain 10.0.3.11:8080?").await;
            page.tab_to("(node) => node.innerText === 'Drain' && node.type === 'submit'").await;
            page.key("Enter").await;
            page.wait("!document.querySelector('dialog').open").await;
            assert_eq!(drained(&stage), ["10.0.3.11:8080"]);

            // What somebody else changed meanwhile is not changed unseen.
            let page = &mut stage.browser;
            page.tab_to("(node) => node.getAttribute('aria-label') === 'Drain 10.0.3.12:8080'")
                .await;
            page.key("Enter").await;
            page.sees("Drain 10.0.3.12:8080?").await;
            // It has asked for the entity tag by then.
            sleep(Duration::from_secs(3)).await;
            let patch = json!({"mode": "snat"});
            let client = stage.server.client();
            let path = format!("/services/{}", xdp_lb_api::client::escape("mail/smtp"));
            client.send(axum::http::Method::PATCH, &path, Some(&patch), &[]).await.unwrap();
            let page = &mut stage.browser;
            page.tab_to("(node) => node.innerText === 'Drain' && node.type === 'submit'").await;
            page.key("Enter").await;
            page.sees("has changed since this was opened").await;
            assert_eq!(drained(&stage), ["10.0.3.11:8080"]);
            stage.ends_well();
        },
    );
}

#[test]
fn a_lost_instance_is_said_and_its_return_is_noticed() {
    with_page(
        |_, _| {},
        async |mut stage| {
            few(memory(&stage));
            stage.open("").await;
            stage.browser.sees("4 in trouble").await;
            stage.browser.sees("mail/smtp").await;
            stage.server.settings.send_modify(|settings| settings.listen = None);
            let page = &mut stage.browser;
            page.sees("Disconnected since ").await;
            page.sees("trying again").await;
            page.sees("What is shown is of ").await;
            assert!(page.shows("mail/smtp").await, "what was known stays");
            let filter = page.eval("getComputedStyle(document.querySelector('main')).filter").await;
            assert_eq!(filter, "grayscale(1)");
            page.picture("disconnected").await;
            // It comes back, and knows other services.
            let mut world = world::World::default();
            let states = &[BackendState::Active];
            let made =
                world::Made { name: "back", number: 9, owner: Owner::File, mode: "l2", states };
            world.add(&made);
            world.tell(&stage.server.memory);
            let listen = stage.listen;
            stage.server.settings.send_modify(|settings| settings.listen = Some(listen));
            let page = &mut stage.browser;
            page.wait("document.querySelector('#link').innerText === 'live'").await;
            page.wait(&format!("{CELLS}.length === 1 && {CELLS}[0][0].startsWith('back')")).await;
            assert!(!page.shows("Disconnected").await);
            let filter = page.eval("getComputedStyle(document.querySelector('main')).filter").await;
            assert_eq!(filter, "none");
            stage.ends_well();
        },
    );
}

#[test]
fn a_token_is_asked_for_kept_in_the_tab_and_never_more_than_it_may() {
    let tokens = |settings: &mut Settings, scratch: &Scratch| {
        settings.read_tokens = Some(scratch.file("read", &format!("{READ}\n")));
        settings.write_tokens = Some(scratch.file("write", &format!("{WRITE}\n")));
    };
    with_page(tokens, async |mut stage| {
        few(memory(&stage));
        stage.open("").await;
        let page = &mut stage.browser;
        page.sees("A token is needed").await;
        page.wait("document.activeElement.id === 'token'").await;
        assert!(!page.shows("mail/smtp").await);
        page.picture("token").await;
        page.type_text("wrong-0123456789abcdef").await;
        page.key("Enter").await;
        page.sees("The instance does not know this token.").await;
        page.type_text(READ).await;
        page.key("Enter").await;
        page.sees("mail/smtp").await;
        let kept = page
            .eval("[localStorage.length, document.cookie, location.href.includes('read-')]")
            .await;
        assert_eq!(kept, json!([0, "", false]), "in the tab alone");
        stage.open("?again").await;
        let page = &mut stage.browser;
        page.sees("mail/smtp").await;

        page.eval("location.hash = '#/service/mail%2Fsmtp'").await;
        page.wait("document.querySelector('[aria-label=\"Drain 10.0.3.11:8080\"]')").await;
        page.eval("[...document.querySelectorAll('[aria-label=\"Drain 10.0.3.11:8080\"]')].at(-1).click()").await;
        page.sees("Drain 10.0.3.11:8080?").await;
        page.eval("document.querySelector('dialog [type=submit]').click()").await;
        page.sees("Not allowed: this token may only read.").await;
        page.key("Escape").await;
        page.eval("document.querySelector('#forget').click()").await;
        page.sees("A token is needed").await;
        assert!(!page.shows("mail/smtp").await, "what was shown is gone");
        assert_eq!(page.eval("sessionStorage.getItem('xdp-lb-token')").await, Value::Null);
        stage.ends_well();
    });
}

#[test]
fn hostile_names_are_only_text() {
    const EVIL: &str =
        "<img src=x onerror=\"window.hit=1\"><script>window.hit=2</script>'\"&amp;\u{202e}";
    with_page(
        |_, _| {},
        async |mut stage| {
            let mut world = world::World::default();
            let states = &[BackendState::Down, BackendState::Draining];
            let made = world::Made { name: EVIL, number: 1, owner: Owner::Api, mode: EVIL, states };
            world.add(&made);
            world.tell(memory(&stage));
            memory(&stage).state.send_modify(|state| {
                let state = Arc::make_mut(state);
                for one in state.backends.values_mut() {
                    one.reason = Some(EVIL.to_owned());
                }
                for one in state.frontends.values_mut() {
                    one.reason = Some(EVIL.to_owned());
                }
                for one in &mut state.devices {
                    one.name = EVIL.to_owned();
                }
                for one in &mut state.checks {
                    one.detail = EVIL.to_owned();
                }
                state.version = EVIL.to_owned();
            });
            for reason in &mut memory(&stage).counters.lock().unwrap().reasons {
                reason.name.push_str(EVIL);
            }
            stage.open("").await;
            stage.browser.sees(EVIL).await;
            stage.server.memory.happen(EVIL);
            for view in ["services", "backends", "counters", "instance", "events", "trace"] {
                let page = &mut stage.browser;
                page.eval(&format!("location.hash = '#/{view}'")).await;
                page.wait(&format!("document.title.toLowerCase().startsWith('{view}')")).await;
                if view != "trace" {
                    page.wait(&format!(
                        "document.querySelector('main').innerText.includes({})",
                        json!(EVIL)
                    ))
                    .await;
                }
            }
            let page = &mut stage.browser;
            page.eval("location.hash = '#/services'").await;
            page.wait("document.querySelector('main tbody a')").await;
            page.eval("document.querySelector('main tbody a').click()").await;
            page.wait(&format!("document.querySelector('main h1').innerText === {}", json!(EVIL)))
                .await;
            page.eval("document.querySelector('main tbody button')?.click()").await;
            page.eval("[...document.querySelectorAll('button')].find((one) => /^(Dr|Undr)ain$/.test(one.innerText)).click()").await;
            page.wait("document.querySelector('dialog').open").await;
            sleep(Duration::from_secs(1)).await;
            let harm = "[window.hit ?? null, document.querySelectorAll('img, main script, main style, iframe').length]";
            assert_eq!(page.eval(harm).await, json!([null, 0]));
            // And were there a way in: the browser itself lets no text become markup or script.
            let refused = "(() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } })()";
            assert_eq!(page.eval(refused).await, true);
            let blocked = stage.browser.complaints.iter().all(|one| one.contains("TrustedHTML"));
            assert!(blocked, "{:?}", stage.browser.complaints);
        },
    );
}

/// The lowest contrast of text that is shown, by WCAG 2.2 (1.4.3), and whose it is.
const CONTRAST: &str = r"(() => {
    const parse = (text) => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const behind = (node) => {
        for (let one = node; one; one = one.parentElement) {
            const color = parse(getComputedStyle(one).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    let worst = [99, ''];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !node.checkVisibility() || node.disabled || node.tagName === 'SCRIPT' || node.tagName === 'NOSCRIPT') continue;
        const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, texts.currentNode.data];
    }
    return worst;
})()";

#[test]
fn it_fits_a_phone_and_is_legible_in_light_and_dark() {
    with_page(
        |_, _| {},
        async |mut stage| {
            few(memory(&stage));
            stage.flow();
            stage.open("").await;
            stage.browser.sees("mail/smtp").await;
            let views = [
                "services",
                "service/shop%2Fapi",
                "service/cdn%2Fedge",
                "backends",
                "counters",
                "instance",
                "events",
                "trace",
            ];
            let mut grounds = vec![];
            for scheme in ["light", "dark"] {
                let page = &mut stage.browser;
                page.scheme(scheme).await;
                for (width, height) in [(320, 640), (390, 844), (768, 1024), (1280, 800)] {
                    page.size(width, height).await;
                    for view in views {
                        page.eval(&format!("location.hash = '#/{view}'")).await;
                        sleep(Duration::from_millis(150)).await;
                        let wide = page.eval("document.documentElement.scrollWidth").await;
                        assert_eq!(wide, json!(width), "{view} does not fit {width} pixels");
                        let worst = page.eval(CONTRAST).await;
                        assert!(worst[0].as_f64().unwrap() >= 4.5, "{scheme} {view}: {worst}");
                        if width == 320 {
                            page.picture(&format!("phone-{scheme}-{}", view.replace('/', "-")))
                                .await;
                        }
                    }
                }
                grounds.push(page.eval("getComputedStyle(document.body).backgroundColor").await);
            }
            assert_ne!(grounds[0], grounds[1]);
            stage.ends_well();
        },
    );
}

#[test]
fn a_packet_is_traced() {
    with_page(
        |_, _| {},
        async |mut stage| {
            few(memory(&stage));
            stage.open("#/trace").await;
            let page = &mut stage.browser;
            page.wait("document.querySelector('main form')?.checkVisibility()").await;
            page.tab_to("(node) => node.name === 'to'").await;
            page.type_text("203.0.113.1:80").await;
            page.key("Enter").await;
            page.sees("from: it is missing").await;
            page.eval("document.querySelector('[name=from]').focus()").await;
            page.type_text("198.51.100.7:40000").await;
            page.key("Enter").await;
            page.sees("198.51.100.7:40000 > 203.0.113.1:80 TCP").await;
            page.sees("look at the neighbour").await;
            page.sees("IPv4, <b>TCP</b>").await;
            page.picture("trace").await;
            stage.ends_well();
        },
    );
}
