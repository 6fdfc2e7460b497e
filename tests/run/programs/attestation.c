/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Local attestation between the enclaves of two processes, over a socket: each side sends where its
 * reports are to be directed and a challenge, and verifies what comes back as an enclave does that
 * receives a REPORT: EGETKEY(REPORT) with the REPORT's KEYID, and the CMAC. PEER is the SIGSTRUCT of
 * the enclave that the other side must be running. "served" and "called" lines tell the verdicts.
 *
 *     attestation ENCLAVE SIGSTRUCT serve SOCKET PEER CALLS   the daemon, for so many calls
 *     attestation ENCLAVE SIGSTRUCT call SOCKET PEER          an honest call
 *     attestation ENCLAVE SIGSTRUCT forge SOCKET PEER         calls that must be refused, and why
 *     attestation ENCLAVE SIGSTRUCT write FILE PEER           a REPORT for PEER, to a file
 *     attestation ENCLAVE SIGSTRUCT read FILE PEER            and the receiver of it
 */
#include "host.h"
#include "report.h"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#define NONCE 32
#define SIGSTRUCT_MISCSELECT 900
#define SIGSTRUCT_ATTRIBUTES 928
#define SIGSTRUCT_XFRM 936
#define SIGSTRUCT_ENCLAVEHASH 960

enum verdict { GENUINE, WRONG_MAC, WRONG_ENCLAVE, WRONG_NONCE };
static const char *const verdicts[] = { "genuine", "wrong MAC", "wrong enclave", "wrong nonce" };

/* The daemon's first word, the caller's answer, and the daemon's answer to that. */
struct challenge {
	struct target target;
	uint8_t nonce[NONCE];
};
struct response {
	struct target target;
	uint8_t nonce[NONCE];
	struct report report;
};
struct conclusion {
	enum verdict verdict;
	struct report report;
};

static struct enclave enclave;
static struct target peer; /* who the other side must be, as a target */

/* ---- the enclave's part --------------------------------------------------------------------- */

static struct report report_for(const struct target *target, const uint8_t *first,
				const uint8_t *second)
{
	struct report report;
	uint8_t data[2 * NONCE];
	struct op op = { .code = OP_REPORT, .a = (uint64_t)target, .b = (uint64_t)data,
			 .c = (uint64_t)&report };

	memcpy(data, first, NONCE);
	memcpy(data + NONCE, second, NONCE);
	if (!do_op(&enclave, 0, &op))
		fail("EREPORT");
	return report;
}

static bool authentic(const struct report *report)
{
	struct keyrequest request = { .keyname = KEYNAME_REPORT };
	uint8_t key[16], mac[16];
	struct op op = { .code = OP_KEY, .a = (uint64_t)&request, .b = (uint64_t)key };

	memcpy(request.keyid, report->keyid, sizeof(request.keyid));
	if (!do_op(&enclave, 0, &op) || op.out[0])
		fail("EGETKEY: %#lx", op.out[0]);
	aes_cmac(key, report, REPORT_MACED, mac);
	return !memcmp(mac, report->mac, sizeof(mac));
}

static enum verdict verify(const struct report *report, const uint8_t *first, const uint8_t *second)
{
	if (!authentic(report))
		return WRONG_MAC;
	if (memcmp(report->mrenclave, peer.measurement, 32) ||
	    report->attributes != peer.attributes || report->miscselect != peer.miscselect)
		return WRONG_ENCLAVE;
	if (memcmp(report->reportdata, first, NONCE) ||
	    memcmp(report->reportdata + NONCE, second, NONCE))
		return WRONG_NONCE;
	return GENUINE;
}

/* What others need to direct a REPORT at this enclave: a REPORT of it tells. */
static struct target self(void)
{
	static const uint8_t nothing[NONCE];
	struct target target = { .attributes = 0 };
	struct report report = report_for(&target, nothing, nothing);

	memcpy(target.measurement, report.mrenclave, 32);
	target.attributes = report.attributes;
	target.xfrm = report.xfrm;
	target.miscselect = report.miscselect;
	return target;
}

static struct target target_of(const char *path)
{
	struct target target = { .attributes = ATTRIBUTE_INIT };
	uint8_t css[1808];
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, css, sizeof(css)) != sizeof(css))
		fail("cannot read the SIGSTRUCT %s", path);
	close(fd);
	memcpy(target.measurement, css + SIGSTRUCT_ENCLAVEHASH, 32);
	target.attributes |= *(uint64_t *)(css + SIGSTRUCT_ATTRIBUTES);
	target.xfrm = *(uint64_t *)(css + SIGSTRUCT_XFRM);
	target.miscselect = *(uint32_t *)(css + SIGSTRUCT_MISCSELECT);
	return target;
}

static void challenge(uint8_t nonce[NONCE])
{
	if (getrandom(nonce, NONCE, 0) != NONCE)
		fail("getrandom");
}

/* ---- the socket ----------------------------------------------------------------------------- */

static void send_all(int fd, const void *data, ssize_t length)
{
	if (send(fd, data, length, MSG_NOSIGNAL) != length)
		fail("the other side is gone");
}

static void receive_all(int fd, void *data, ssize_t length)
{
	if (recv(fd, data, length, MSG_WAITALL) != length)
		fail("the other side said less than %zd bytes", length);
}

static struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	return address;
}

static int connected(const char *path)
{
	struct sockaddr_un address = address_of(path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	/* The daemon may have just been started: the alarm ends the waiting. */
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		usleep(1000);
	return fd;
}

static void serve(const char *path, int calls)
{
	struct sockaddr_un address = address_of(path);
	int listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (bind(listening, (struct sockaddr *)&address, sizeof(address)) || listen(listening, 8))
		fail("listening at %s", path);
	while (calls--) {
		int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
		struct challenge mine = { .target = self() };
		struct conclusion conclusion;
		struct response theirs;

		challenge(mine.nonce);
		send_all(fd, &mine, sizeof(mine));
		receive_all(fd, &theirs, sizeof(theirs));
		conclusion.verdict = verify(&theirs.report, mine.nonce, theirs.nonce);
		conclusion.report = report_for(&theirs.target, theirs.nonce, mine.nonce);
		send_all(fd, &conclusion, sizeof(conclusion));
		dprintf(1, "served: %s\n", verdicts[conclusion.verdict]);
		close(fd);
	}
	unlink(path);
}

/* ---- the caller ----------------------------------------------------------------------------- */

struct call {
	int fd;
	struct challenge theirs;
	struct response mine;
};

/* Called, challenged, and an honest response made but not sent. */
static struct call begin_call(const char *path)
{
	struct call call = { .fd = connected(path) };

	receive_all(call.fd, &call.theirs, sizeof(call.theirs));
	call.mine.target = self();
	challenge(call.mine.nonce);
	call.mine.report = report_for(&call.theirs.target, call.theirs.nonce, call.mine.nonce);
	return call;
}

static struct conclusion end_call(struct call *call)
{
	struct conclusion conclusion;

	send_all(call->fd, &call->mine, sizeof(call->mine));
	receive_all(call->fd, &conclusion, sizeof(conclusion));
	close(call->fd);
	return conclusion;
}

static void call_honestly(const char *path)
{
	struct call call = begin_call(path);
	struct conclusion conclusion = end_call(&call);

	dprintf(1, "called: %s\n",
		verdicts[verify(&conclusion.report, call.mine.nonce, call.theirs.nonce)]);
}

static void must_be(const char *what, struct call *call, enum verdict wanted)
{
	enum verdict found = end_call(call).verdict;

	check(found == wanted, what, "%s, wanted %s", verdicts[found], verdicts[wanted]);
}

/* The REPORT goes to another target than the one that was asked for. */
static void misdirected(const char *path, const char *what, size_t offset, uint8_t change,
			enum verdict wanted)
{
	struct call call = begin_call(path);
	struct target target = call.theirs.target;

	((uint8_t *)&target)[offset] ^= change;
	call.mine.report = report_for(&target, call.theirs.nonce, call.mine.nonce);
	must_be(what, &call, wanted);
}

#define TARGET(field) offsetof(struct target, field)

static void forge(const char *path)
{
	struct call call = begin_call(path);
	struct response first = call.mine;

	must_be("an honest call", &call, GENUINE);
	call = begin_call(path);
	call.mine = first;
	must_be("the last call's response again", &call, WRONG_NONCE);
	call = begin_call(path);
	call.mine.nonce[31] ^= 1;
	must_be("another challenge than the REPORT tells", &call, WRONG_NONCE);

	call = begin_call(path);
	call.mine.report = report_for(&call.mine.target, call.theirs.nonce, call.mine.nonce);
	CHECK("a REPORT for oneself verifies here", authentic(&call.mine.report));
	must_be("and nowhere else", &call, WRONG_MAC);
	call = begin_call(path);
	CHECK("the REPORT for the daemon does not", !authentic(&call.mine.report));
	must_be("but there", &call, GENUINE);

	misdirected(path, "another MEASUREMENT", TARGET(measurement) + 31, 1, WRONG_MAC);
	misdirected(path, "ATTRIBUTES without INIT", TARGET(attributes), 1, WRONG_MAC);
	misdirected(path, "ATTRIBUTES with DEBUG", TARGET(attributes), 2, WRONG_MAC);
	misdirected(path, "another XFRM", TARGET(xfrm), 4, WRONG_MAC);
	misdirected(path, "another MISCSELECT", TARGET(miscselect), 1, WRONG_MAC);
	misdirected(path, "another CONFIGSVN", TARGET(configsvn), 1, WRONG_MAC);
	misdirected(path, "another CONFIGID", TARGET(configid) + 63, 1, WRONG_MAC);
	/* EREPORT reads none of these: the target is the same. */
	misdirected(path, "reserved bytes", TARGET(reserved1), 0xff, GENUINE);
	misdirected(path, "more of them", TARGET(reserved2), 0xff, GENUINE);
	misdirected(path, "the last of them", TARGET(reserved3) + 383, 0xff, GENUINE);

	for (size_t i = 0; i < sizeof(struct report); i++) {
		char name[40];

		call = begin_call(path);
		((uint8_t *)&call.mine.report)[i] ^= 1 << i % 8;
		snprintf(name, sizeof(name), "byte %zu of the REPORT", i);
		must_be(name, &call, WRONG_MAC);
	}
}

/* ---- by a file ------------------------------------------------------------------------------ */

static const uint8_t written[NONCE] = "for whoever reads it";

static void write_report(const char *path)
{
	struct report report = report_for(&peer, written, written);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (write(fd, &report, sizeof(report)) != sizeof(report) || close(fd))
		fail("writing %s", path);
}

static void read_report(const char *path)
{
	struct report report;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (read(fd, &report, sizeof(report)) != sizeof(report) || close(fd))
		fail("reading %s", path);
	dprintf(1, "read: %s\n", verdicts[verify(&report, written, written)]);
}

int main(int argc, char **argv)
{
	const char *what = argc > 5 ? argv[3] : "";

	end_after(18);
	begin(argc, argv);
	enclave = build(&the_image);
	peer = target_of(argv[5]);
	if (!strcmp(what, "serve") && argc == 7)
		serve(argv[4], atoi(argv[6]));
	else if (!strcmp(what, "call"))
		call_honestly(argv[4]);
	else if (!strcmp(what, "forge"))
		forge(argv[4]);
	else if (!strcmp(what, "write"))
		write_report(argv[4]);
	else if (!strcmp(what, "read"))
		read_report(argv[4]);
	else
		fail("no such part: %s", what);
	return finish();
}
