/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave whose descriptor goes over a socket to a process that has never opened a node: it is a node's
 * there too, and the enclave can be mapped and entered. It lives as long as either has it. A descriptor that is
 * close-on-exec is not there after an exec.
 */
#include "host.h"

#include <sys/socket.h>

#define KEPT 0x4b455054UL

struct message {
	uint64_t base;
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
};

static void send_enclave(int channel, const struct enclave *enclave)
{
	struct message message = { .base = enclave->base };
	struct iovec vector = { &message.base, sizeof(message.base) };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1,
				 .msg_control = message.control,
				 .msg_controllen = sizeof(message.control) };
	struct cmsghdr *rights = CMSG_FIRSTHDR(&header);

	rights->cmsg_level = SOL_SOCKET;
	rights->cmsg_type = SCM_RIGHTS;
	rights->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(rights), &enclave->fd, sizeof(int));
	if (sendmsg(channel, &header, 0) != sizeof(message.base))
		fail("sendmsg");
}

static struct enclave receive_enclave(int channel)
{
	struct message message;
	struct iovec vector = { &message.base, sizeof(message.base) };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1,
				 .msg_control = message.control,
				 .msg_controllen = sizeof(message.control) };
	struct enclave enclave = { .size = the_image.size, .image = &the_image };

	if (recvmsg(channel, &header, 0) != sizeof(message.base))
		fail("recvmsg");
	enclave.base = message.base;
	memcpy(&enclave.fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(int));
	return enclave;
}

static void receiver(int channel)
{
	struct enclave enclave = receive_enclave(channel);
	struct op get = { .code = OP_GET };
	struct stat st;
	char byte;

	check_errno("receiver: a second CREATE", create(enclave.fd, &(struct secs){
		.size = 2 * PAGE, .base = enclave.base, .ssa_frame_size = 1,
		.attributes = ATTRIBUTE_MODE64BIT, .xfrm = XFRM_LEGACY }), EINVAL);
	/* At the same addresses: that is where the enclave is. */
	check_works("receiver: mapping it", map_segments(&enclave));
	CHECK("receiver: fstat tells a character device",
	      fstat(enclave.fd, &st) == 0 && S_ISCHR(st.st_mode));
	CHECK("receiver: what the sender has put there", do_op(&enclave, 1, &get) && get.out[0] == KEPT);
	close(enclave.fd);
	if (write(channel, "m", 1) != 1 || read(channel, &byte, 1) != 0)
		fail("waiting for the sender's end");
	CHECK("receiver: it outlives the sender", do_op(&enclave, 2, &get) && get.out[0] == KEPT);
}

int main(int argc, char **argv)
{
	struct op put = { .code = OP_PUT, .a = KEPT };
	struct enclave enclave;
	int channel[2], status;
	char byte, number[16];
	pid_t child, sender;

	if (argc > 3) {
		struct stat st;

		check_errno("a close-on-exec descriptor", fstat(atoi(argv[3]), &st), EBADF);
		return finish();
	}
	begin(argc, argv);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel))
		fail("socketpair");
	child = fork();
	if (!child) {
		close(channel[0]);
		receiver(channel[1]);
		_exit(failures ? 1 : 0);
	}
	close(channel[1]);
	sender = fork();
	if (!sender) {
		enclave = build(&the_image);
		CHECK("sender: enters", do_op(&enclave, 0, &put));
		send_enclave(channel[0], &enclave);
		if (read(channel[0], &byte, 1) != 1)
			fail("waiting for the receiver");
		snprintf(number, sizeof(number), "%d", enclave.fd);
		fcntl(enclave.fd, F_SETFD, FD_CLOEXEC);
		close(channel[0]);
		execl("/proc/self/exe", argv[0], argv[1], argv[2], number, NULL);
		_exit(1);
	}
	close(channel[0]);
	waitpid(sender, &status, 0);
	CHECK("the sender ended well", !status);
	waitpid(child, &status, 0);
	CHECK("the receiver ended well", !status);
	return finish();
}
