/* PID 1 of the test guest: loads /m/*.ko in order, then dials the host again and again; the first byte it reads
 * says what to do with the connection. */
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char buf[65536];

static int all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t w = write(fd, p, n);
		if (w <= 0)
			return -1;
		p += w;
		n -= w;
	}
	return 0;
}

static void serve(int fd)
{
	unsigned long long count = 0;
	char what = 0;
	ssize_t n;

	if (read(fd, &what, 1) != 1)
		return;
	switch (what) {
	case 'e': /* echo */
		while ((n = read(fd, buf, sizeof buf)) > 0)
			if (all(fd, buf, n))
				break;
		break;
	case 's': /* sink: tells how much came, after the host's half was closed */
		while ((n = read(fd, buf, sizeof buf)) > 0)
			count += n;
		all(fd, (char *)&count, sizeof count);
		break;
	case 'g': /* source: 32 MiB */
		for (int i = 0; i < 512; i++) {
			memset(buf, i, sizeof buf);
			if (all(fd, buf, sizeof buf))
				break;
		}
		break;
	case 'q':
		reboot(RB_AUTOBOOT);
	}
}

int main(void)
{
	char path[64];

	for (int i = 0;; i++) {
		snprintf(path, sizeof path, "/m/%02d.ko", i);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			break;
		if (syscall(SYS_finit_module, fd, "", 0))
			printf("%s: %s\n", path, strerror(errno));
		close(fd);
	}
	printf("guest is up\n");
	fflush(stdout);
	for (;;) {
		struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 1024 };
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0)
			serve(fd);
		else
			usleep(20000);
		close(fd);
	}
}
