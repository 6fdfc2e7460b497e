// SPDX-License-Identifier: Apache-2.0

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import java.util.zip.CRC32;

/** What HotSpot does by generated code and by signals: compiled loops, null checks, safepoints. */
public class Work {
    private static int nulls;
    private static int depth;

    private static int length(String text) {
        return text.length();
    }

    private static int hash(int from, int turns) {
        int sum = from;
        for (int i = 0; i < turns; i++) {
            sum = sum * 31 + i;
        }
        return sum;
    }

    private static void sink() {
        depth++;
        sink();
    }

    public static void main(String[] args) throws Exception {
        int sum = 0;
        for (int i = 0; i < 20000; i++) {
            sum += hash(i, 100);
            try {
                // In compiled code this null check is a SIGSEGV.
                sum += length(i % 100 == 0 ? null : "text");
            } catch (NullPointerException expected) {
                nulls++;
            }
        }
        System.out.println("sum " + sum + ", nulls " + nulls);
        try {
            System.out.println(sum / (nulls - nulls));
        } catch (ArithmeticException expected) {
            System.out.println("division by zero");
        }
        try {
            sink();
        } catch (StackOverflowError expected) {
            System.out.println("deep enough: " + (depth > 500));
        }
        CRC32 crc = new CRC32();
        List<byte[]> kept = new ArrayList<>();
        for (int i = 0; i < 500; i++) {
            byte[] bytes = new byte[20000];
            bytes[i] = (byte) i;
            crc.update(bytes);
            if (i % 50 == 0) {
                kept.add(bytes);
            }
        }
        System.gc();
        System.out.println("crc " + crc.getValue() + ", kept " + kept.size());
        System.out.println("parallel " + IntStream.range(0, 100000).parallel().map(i -> i % 7).sum());
        int[] found = new int[4];
        Thread[] threads = new Thread[4];
        for (int t = 0; t < threads.length; t++) {
            int from = t;
            threads[t] = new Thread(() -> found[from] = hash(from, 1000000));
            threads[t].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("threads " + (found[0] ^ found[1] ^ found[2] ^ found[3]));
    }
}
