/*
 * What a 32-bit program's loader finds in place of the library, under the same /etc/ld.so.preload
 * entry: nothing. An entry that it cannot load it would complain about, on the program's stderr.
 */
__attribute__((visibility("hidden"))) extern const char sub_nothing;
const char sub_nothing = 0;
