package redisstore

import "strings"

// slots is how many a Redis cluster has.
const slots = 16384

// slot is where a cluster keeps a key: by what stands in its first braces, if there
// is something, else by all of it
// (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
func slot(key string) uint16 {
	if tag, ok := hashTag(key); ok {
		key = tag
	}
	crc := uint16(0) // CRC-16/XMODEM
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc % slots
}

// hashTag is what stands in a key's first braces; ok is false if that is nothing.
func hashTag(key string) (tag string, ok bool) {
	if _, after, found := strings.Cut(key, "{"); found {
		tag, _, ok = strings.Cut(after, "}")
	}
	return tag, ok && tag != ""
}
